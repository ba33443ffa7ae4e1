// The Python module boxwright.core._native.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

namespace nb = nanobind;

namespace {

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) names.emplace_back("avx512");
    if (__builtin_cpu_supports("avx2")) names.emplace_back("avx2");
#elif defined(__aarch64__)
    names.emplace_back("neon");
#endif
    names.emplace_back("plain");
    return names;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The compiled kernels of Boxwright; use them through boxwright.core.kernels.";
    m.def("instruction_sets", &instruction_sets, "Instruction sets that this CPU and this build have, best first.");
}

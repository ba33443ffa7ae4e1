// libFuzzer: cmake -DBOXWRIGHT_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ ..., then ./fuzz_decode_nms CORPUS
#include "random_case.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    boxwright::fuzz::check_decode_nms(data, size);
    return 0;
}

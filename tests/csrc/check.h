// The little that the C++ tests need of a test framework: a list of named tests and checks that say where they failed.
#ifndef BOXWRIGHT_TESTS_CHECK_H
#define BOXWRIGHT_TESTS_CHECK_H

#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

inline int& num_failures() {
    static int count = 0;
    return count;
}

inline std::vector<std::pair<std::string, std::function<void()>>>& all_tests() {
    static std::vector<std::pair<std::string, std::function<void()>>> tests;
    return tests;
}

struct RegisterTest {
    RegisterTest(const char* name, std::function<void()> body) { all_tests().emplace_back(name, std::move(body)); }
};

#define TEST(name)                                      \
    static void name();                                 \
    static const RegisterTest register_##name(#name, name); \
    static void name()

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);     \
            ++num_failures();                                                       \
        }                                                                           \
    } while (false)

inline int run_all_tests() {
    for (const auto& [name, body] : all_tests()) {
        const int before = num_failures();
        body();
        std::printf("%-60s %s\n", name.c_str(), num_failures() == before ? "ok" : "FAILED");
    }
    std::printf("%zu tests, %d failures\n", all_tests().size(), num_failures());
    return num_failures() == 0 ? 0 : 1;
}

#endif

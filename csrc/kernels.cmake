# The kernels as the target boxwright_kernels, for the Python extension, the engines' plugins and the C++ SDK alike.
add_library(boxwright_kernels STATIC
  ${CMAKE_CURRENT_LIST_DIR}/candidates.cpp
  ${CMAKE_CURRENT_LIST_DIR}/decode_nms.cpp
  ${CMAKE_CURRENT_LIST_DIR}/decode_nms_validate.cpp
  ${CMAKE_CURRENT_LIST_DIR}/instruction_set.cpp
  ${CMAKE_CURRENT_LIST_DIR}/letterbox.cpp
  ${CMAKE_CURRENT_LIST_DIR}/ranking.cpp
  ${CMAKE_CURRENT_LIST_DIR}/vector_kernels.cpp
  ${CMAKE_CURRENT_LIST_DIR}/vector_kernels_plain.cpp)
target_include_directories(boxwright_kernels PUBLIC "${CMAKE_CURRENT_LIST_DIR}")
# No contraction to fused multiply-add: all instruction sets are to give the same bits as the numpy reference.
target_compile_options(boxwright_kernels PRIVATE
  -Wall -Wextra -Wconversion -Wshadow -ffp-contract=off -fno-math-errno -fno-trapping-math $<$<CONFIG:Release>:-O3>)
find_package(Threads REQUIRED)
target_link_libraries(boxwright_kernels PUBLIC Threads::Threads)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  target_sources(boxwright_kernels PRIVATE
    ${CMAKE_CURRENT_LIST_DIR}/vector_kernels_avx2.cpp ${CMAKE_CURRENT_LIST_DIR}/vector_kernels_avx512.cpp)
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/vector_kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2")
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/vector_kernels_avx512.cpp PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mprefer-vector-width=512")
  target_compile_definitions(boxwright_kernels PRIVATE BOXWRIGHT_HAS_AVX)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  target_sources(boxwright_kernels PRIVATE ${CMAKE_CURRENT_LIST_DIR}/vector_kernels_neon.cpp)
  target_compile_definitions(boxwright_kernels PRIVATE BOXWRIGHT_HAS_NEON)
endif()

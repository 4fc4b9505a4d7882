include(GoogleTest)

# qs_library(name SOURCES a.cc … DEPS t …): a static library whose includes are written from the repository root.
function(qs_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  if(arg_SOURCES)
    add_library(${name} STATIC ${arg_SOURCES})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} PUBLIC ${arg_DEPS} PRIVATE ${arg_PRIVATE_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} INTERFACE ${arg_DEPS})
  endif()
endfunction()

# qs_test(name SOURCES a_test.cc … DEPS t … LABELS l … [PREFIX p]): one gtest binary, every case a ctest of its own,
# named p + suite.case.
function(qs_test name)
  cmake_parse_arguments(arg "" "TIMEOUT;PREFIX" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    TEST_PREFIX "${arg_PREFIX}"
    PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
  if("gpu" IN_LIST arg_LABELS)
    set_property(GLOBAL APPEND PROPERTY QUICKSILVER_GPU_TESTS ${name})
  endif()
endfunction()

# qs_gpu_program(name): a program that tools/gpu_check needs besides the tests with the label gpu.
function(qs_gpu_program name)
  set_property(GLOBAL APPEND PROPERTY QUICKSILVER_GPU_PROGRAMS ${name})
endfunction()

# qs_fuzz(name SOURCES a_fuzz.cc DEPS t …): a libFuzzer target, built only with QUICKSILVER_FUZZ and clang.
function(qs_fuzz name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  if(QUICKSILVER_FUZZ)
    add_executable(${name} ${arg_SOURCES})
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${name} PRIVATE ${arg_DEPS})
  endif()
endfunction()

# qs_failpoints_variant(name SOURCES a.cc … DEPS t …): a program for tests alone, in which the failpoints of SOURCES are
# live (common/failpoint.h). The linker takes the rest from the libraries, whose objects of SOURCES it leaves out.
function(qs_failpoints_variant name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  if(QUICKSILVER_TESTS)
    add_executable(${name} ${arg_SOURCES})
    target_compile_definitions(${name} PRIVATE QUICKSILVER_FAILPOINTS)
    target_link_libraries(${name} PRIVATE qs_failpoint ${arg_DEPS})
  endif()
endfunction()

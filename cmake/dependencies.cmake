# Everything here is a Debian 12 package; tools/install_dependencies names them.
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)  # module mode: Debian ships no protobuf-config.cmake
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(nlohmann_json 3.11 CONFIG REQUIRED)
find_package(Boost 1.81 CONFIG REQUIRED COMPONENTS headers)
find_package(OpenSSL REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(Gloo CONFIG REQUIRED)  # un-namespaced target 'gloo'
find_package(ICU REQUIRED COMPONENTS uc)
find_package(CLI11 CONFIG REQUIRED)
find_package(yaml-cpp CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
find_library(DNNL_LIBRARY dnnl REQUIRED)  # its CMake config demands OpenCL headers
if(QUICKSILVER_TESTS)
  find_package(GTest CONFIG REQUIRED)
  find_package(Boost 1.81 CONFIG REQUIRED COMPONENTS context)
endif()

# Programs that run on a machine with none of our packages: archives in place of shared libraries, for what has one. What
# has none (oneDNN, gloo) and gRPC stay shared, and only programs that do not need them can travel.
option(QUICKSILVER_PORTABLE "Link archives and the C++ runtime statically" OFF)
if(NOT QUICKSILVER_PORTABLE)
  return()
endif()
set(Protobuf_USE_STATIC_LIBS ON)
set(OPENSSL_USE_STATIC_LIBS ON)
set(CMAKE_SKIP_RPATH ON)
add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>)  # The kernels are in every program.
add_link_options(-Wl,--as-needed -Wl,--gc-sections -Wl,--exclude-libs,ALL -static-libstdc++ -static-libgcc)

# Call after the packages have been found.
function(qs_prefer_archives)
  get_property(imported DIRECTORY ${PROJECT_SOURCE_DIR} PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS imported)
    if(target MATCHES "^absl::(.*)$")
      set(archive libabsl_${CMAKE_MATCH_1}.a)
    elseif(target STREQUAL "yaml-cpp")
      set(archive libyaml-cpp.a)
    else()
      continue()
    endif()
    find_file(archive_path ${archive} PATHS /usr/lib /usr/local/lib PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE}
      NO_CACHE NO_DEFAULT_PATH)
    if(archive_path)
      set_target_properties(${target} PROPERTIES IMPORTED_LOCATION_NONE ${archive_path} IMPORTED_LOCATION ${archive_path}
        IMPORTED_LOCATION_RELEASE ${archive_path})
    endif()
    unset(archive_path)
  endforeach()
  # Headers alone: nothing then refers to the shared libraries.
  set_target_properties(spdlog::spdlog PROPERTIES
    INTERFACE_COMPILE_DEFINITIONS "SPDLOG_FMT_EXTERNAL;FMT_HEADER_ONLY=1")
endfunction()

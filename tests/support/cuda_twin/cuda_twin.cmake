# cuda_twin_sources(variable file…): for each CUDA source, given from the repository root, generates a C++ file that
# includes it, so that the same source can also belong to a target of nvcc. The list goes to `variable`. A target made of
# them must link cuda_twin. Their accesses to memory are checked for races (race_check.h), which a sanitizer precludes.
function(cuda_twin_sources variable)
  set(wrappers)
  foreach(file IN LISTS ARGN)
    set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/cuda_twin/${file}.cc)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"@file@\"\n" @ONLY)
    list(APPEND wrappers ${wrapper})
  endforeach()
  cuda_twin_check_races(${wrappers})
  set(${variable} ${wrappers} PARENT_SCOPE)
endfunction()

function(cuda_twin_check_races)
  if(NOT QUICKSILVER_SANITIZE)
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS
      "-fsanitize=thread;--param=tsan-instrument-func-entry-exit=0;-Wno-tsan")
  endif()
endfunction()

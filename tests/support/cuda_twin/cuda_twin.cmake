# cuda_twin_sources(variable file…): for each CUDA source, given from the repository root, generates a C++ file that
# includes it, so that the same source can also belong to a target of nvcc. The list goes to `variable`. A target made of
# them must link cuda_twin.
function(cuda_twin_sources variable)
  set(wrappers)
  foreach(file IN LISTS ARGN)
    set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/cuda_twin/${file}.cc)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"@file@\"\n" @ONLY)
    list(APPEND wrappers ${wrapper})
  endforeach()
  set(${variable} ${wrappers} PARENT_SCOPE)
endfunction()

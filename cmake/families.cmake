# Makes DIRECTORY_OF_THE_BUILD/families.cc, which lists the families of worker/model/families/, and sets
# `family_sources` to it and their files. A file NAME.cc defines `std::vector<Family> NameFamilies()`: fast_dllm.cc
# FastDllmFamilies(). `ARGN`: files there that are no families.
function(qs_families)
  file(GLOB files CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} families/*.cc)
  list(REMOVE_ITEM files ${ARGN})
  set(declarations "")
  set(calls "")
  foreach(file IN LISTS files)
    get_filename_component(name ${file} NAME_WE)
    string(REPLACE "_" ";" words ${name})
    set(function "")
    foreach(word IN LISTS words)
      string(SUBSTRING ${word} 0 1 first)
      string(SUBSTRING ${word} 1 -1 rest)
      string(TOUPPER ${first} first)
      string(APPEND function ${first}${rest})
    endforeach()
    string(APPEND declarations "std::vector<Family> ${function}Families();\n")
    string(APPEND calls "${function}Families(), ")
  endforeach()
  file(CONFIGURE OUTPUT families.cc @ONLY CONTENT [[
// Made by cmake/families.cmake.
#include "worker/model/families/family.h"

namespace quicksilver {

@declarations@
const std::vector<Family>& Families() {
  static const std::vector<Family> families = [] {
    std::vector<Family> all;
    for (const std::vector<Family>& some : {@calls@}) all.insert(all.end(), some.begin(), some.end());
    return all;
  }();
  return families;
}

}  // namespace quicksilver
]])
  set(family_sources ${files} ${CMAKE_CURRENT_BINARY_DIR}/families.cc PARENT_SCOPE)
endfunction()

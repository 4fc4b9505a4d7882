#include "worker/model/families/family.h"

namespace quicksilver {

const std::vector<Family>& Families() {
  static const std::vector<Family> families = {SdarFamily(),     SdarMoeFamily(), LladaFamily(),   IlladaFamily(),
                                               LladaMoeFamily(), Llada2Family(),  DreamFamily(),   FastDllmFamily(),
                                               Qwen2Family(),    Qwen3Family(),   Qwen3MoeFamily()};
  return families;
}

const Family* FindFamily(const std::string& architecture) {
  for (const Family& family : Families()) {
    if (architecture == family.architecture) return &family;
  }
  return nullptr;
}

}  // namespace quicksilver

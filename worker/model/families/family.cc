#include "worker/model/families/family.h"

namespace quicksilver {

const Family* FindFamily(const std::string& architecture) {
  for (const Family& family : Families()) {
    if (architecture == family.architecture) return &family;
  }
  return nullptr;
}

}  // namespace quicksilver

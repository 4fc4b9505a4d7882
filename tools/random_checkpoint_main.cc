#include "tools/random_checkpoint.h"

int main(int argc, char** argv) {
  return quicksilver::RunRandomCheckpoint(std::vector<std::string>(argv + 1, argv + argc));
}

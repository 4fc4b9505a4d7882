#include "tests/support/cuda_twin/report.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace quicksilver::cuda_twin {
namespace {

const char* Name(Rendezvous kind) {
  switch (kind) {
    case Rendezvous::kNone:
      return "nothing";
    case Rendezvous::kSyncThreads:
      return "__syncthreads()";
    case Rendezvous::kSyncWarp:
      return "__syncwarp()";
    case Rendezvous::kShuffle:
      return "__shfl_sync()";
    case Rendezvous::kShuffleXor:
      return "__shfl_xor_sync()";
    case Rendezvous::kShuffleUp:
      return "__shfl_up_sync()";
    case Rendezvous::kShuffleDown:
      return "__shfl_down_sync()";
    case Rendezvous::kVote:
      return "__ballot_sync(), __any_sync() or __all_sync()";
    case Rendezvous::kMma:
      return "MmaBf16()";
    case Rendezvous::kLoadMatrix:
      return "LoadMatrix4()";
    case Rendezvous::kLoadMatrixTransposed:
      return "LoadMatrix4Transposed()";
  }
  return "?";
}

const char* Standing(const Warp& warp, uint32_t bit) {
  if (warp.exited & bit) return "has ended";
  if (warp.at_barrier & bit) return "__syncthreads()";
  if (warp.arrived & bit) return Name(warp.kind);
  if (warp.spinning & bit) return "polls memory";
  return "runs";
}

void PrintBlock(const Block& block) {
  std::fprintf(stderr, "  block (%u, %u, %u):\n", block.index.x, block.index.y, block.index.z);
  int first = 0;
  const char* standing = nullptr;
  int end = 0;
  for (const Warp& warp : block.warps) {
    for (int lane = 0; lane < kWarpThreads && (warp.exists >> lane & 1u) != 0; ++lane, ++end) {
      const char* here = Standing(warp, uint32_t{1} << lane);
      if (here == standing) continue;
      if (standing != nullptr) std::fprintf(stderr, "    threads %d to %d: %s\n", first, end - 1, standing);
      first = end;
      standing = here;
    }
  }
  if (standing != nullptr) std::fprintf(stderr, "    threads %d to %d: %s\n", first, end - 1, standing);
}

// Kernels of unnamed namespaces are in no dynamic symbol table, so the file's own is read.
std::string SymbolInFile(const char* file, uintptr_t offset) {
  std::ifstream in(file, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (bytes.size() < sizeof(ElfW(Ehdr))) return "";
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t s = 0; s < sections[i].sh_size / sizeof(ElfW(Sym)); ++s) {
      if (ELF64_ST_TYPE(symbols[s].st_info) == STT_FUNC && symbols[s].st_value == offset) {
        return names + symbols[s].st_name;
      }
    }
  }
  return "";
}

struct Lookup {
  uintptr_t address;
  std::string symbol;
};

int VisitModule(dl_phdr_info* info, size_t, void* data) {
  auto* lookup = static_cast<Lookup*>(data);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    if (info->dlpi_phdr[i].p_type != PT_LOAD || lookup->address < begin ||
        lookup->address >= begin + info->dlpi_phdr[i].p_memsz) {
      continue;
    }
    const bool program = info->dlpi_name[0] == '\0';
    lookup->symbol = SymbolInFile(program ? "/proc/self/exe" : info->dlpi_name, lookup->address - info->dlpi_addr);
    return 1;
  }
  return 0;
}

}  // namespace

std::string FunctionName(const void* function) {
  Lookup lookup{reinterpret_cast<uintptr_t>(function), ""};
  dl_iterate_phdr(VisitModule, &lookup);
  if (lookup.symbol.empty()) {
    char text[32];
    std::snprintf(text, sizeof text, "%p", function);
    return text;
  }
  int status = 0;
  char* demangled = abi::__cxa_demangle(lookup.symbol.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : lookup.symbol;
  std::free(demangled);
  return name;
}

void ReportKernelError(const KernelCall& call, const std::vector<const Block*>& blocks, const ThreadState* thread,
                       const char* what, const void* pointer) {
  std::fprintf(stderr, "CUDA twin: %s\n  kernel %s\n", what, FunctionName(call.function).c_str());
  if (thread != nullptr) {
    const uint3 t = thread->thread_index;
    const uint3 b = thread->block_index;
    std::fprintf(stderr, "  found by thread (%u, %u, %u) of block (%u, %u, %u)\n", t.x, t.y, t.z, b.x, b.y, b.z);
  }
  if (pointer != nullptr) std::fprintf(stderr, "  address %p\n", pointer);
  for (const Block* block : blocks) PrintBlock(*block);
  std::fflush(stderr);
  std::abort();
}

}  // namespace quicksilver::cuda_twin

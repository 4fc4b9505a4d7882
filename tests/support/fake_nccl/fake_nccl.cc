#include "tests/support/fake_nccl/fake_nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <unistd.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "common/mutex.h"

namespace {

using quicksilver::CondVar;
using quicksilver::FakeNcclControl;
using quicksilver::Mutex;
using quicksilver::MutexLock;

FakeNcclControl control;

// The ranks of one unique id.
struct Group {
  Mutex mutex;
  CondVar changed;
  int size = 0;
  int joined = 0;
  int arrived = 0;
  uint64_t meetings = 0;
  std::vector<const void*> inputs;  // By rank; set before a meeting, read until the next.

  // False when the caller's communicator was aborted meanwhile.
  bool Meet(const std::atomic<bool>& aborted) {
    MutexLock lock(mutex);
    const uint64_t meeting = meetings;
    if (++arrived == size) {
      arrived = 0;
      ++meetings;
      changed.NotifyAll();
    }
    while (meetings == meeting && !aborted.load()) changed.Wait(mutex);
    return meetings != meeting;
  }
};

Mutex groups_mutex;
std::map<uint64_t, std::shared_ptr<Group>> groups;
uint64_t next_id = 1;

size_t Bytes(ncclDataType_t type) { return type == ncclFloat32 ? 4 : type == ncclBfloat16 ? 2 : 1; }

}  // namespace

struct ncclComm;

namespace {

struct Operation {
  ncclComm* comm;
  const void* in;
  void* out;
  size_t count;
  ncclDataType_t type;
  bool reduce;
};

}  // namespace

struct ncclComm {
  std::shared_ptr<Group> group;
  int rank = 0;
  std::atomic<int> polls{0};  // "In progress" answers left; -1: for ever.
  std::atomic<bool> aborted{false};
  std::vector<std::unique_ptr<Operation>> operations;  // Graphs run them again.
};

namespace {

// Sums from the last rank to the first: not the order that the project promises.
float SumAt(const Group& group, ncclDataType_t type, size_t i) {
  float sum = 0;
  for (int rank = group.size - 1; rank >= 0; --rank) {
    if (type == ncclFloat32) {
      sum += static_cast<const float*>(group.inputs[rank])[i];
    } else {
      sum += std::bit_cast<float>(uint32_t{static_cast<const uint16_t*>(group.inputs[rank])[i]} << 16);
    }
  }
  return sum;
}

std::vector<unsigned char> Result(const Operation& operation) {
  const Group& group = *operation.comm->group;
  const size_t bytes = operation.count * Bytes(operation.type);
  std::vector<unsigned char> result;
  if (!operation.reduce) {
    for (const void* input : group.inputs) {
      const auto* from = static_cast<const unsigned char*>(input);
      result.insert(result.end(), from, from + bytes);
    }
    return result;
  }
  result.resize(bytes);
  for (size_t i = 0; i < operation.count; ++i) {
    const float sum = SumAt(group, operation.type, i);
    const uint32_t bits = std::bit_cast<uint32_t>(sum);
    const auto half = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    if (operation.type == ncclFloat32) {
      std::memcpy(result.data() + 4 * i, &sum, 4);
    } else {
      std::memcpy(result.data() + 2 * i, &half, 2);
    }
  }
  return result;
}

void Run(void* data) {
  const Operation& operation = *static_cast<Operation*>(data);
  ncclComm& comm = *operation.comm;
  {
    MutexLock lock(comm.group->mutex);
    comm.group->inputs[comm.rank] = operation.in;
  }
  if (!comm.group->Meet(comm.aborted)) return;
  const std::vector<unsigned char> result = Result(operation);
  if (!comm.group->Meet(comm.aborted)) return;
  std::memcpy(operation.out, result.data(), result.size());
}

ncclResult_t Enqueue(ncclComm_t comm, const Operation& operation, cudaStream_t stream) {
  if (comm->polls.load() != 0) return ncclInvalidUsage;  // The last call is still in progress.
  comm->operations.push_back(std::make_unique<Operation>(operation));
  if (cudaLaunchHostFunc(stream, Run, comm->operations.back().get()) != cudaSuccess) return ncclUnhandledCudaError;
  comm->polls = control.enqueue_polls.load();
  return comm->polls.load() == 0 ? ncclSuccess : ncclInProgress;
}

}  // namespace

extern "C" {

FakeNcclControl* FakeNccl() { return &control; }

ncclResult_t ncclGetVersion(int* version) {
  *version = control.version.load();
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "some other error";
  }
}

const char* ncclGetLastError(ncclComm_t) { return "the stand-in has no more to say"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  MutexLock lock(groups_mutex);
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id->internal, &next_id, sizeof(next_id));
  ++next_id;
  return static_cast<ncclResult_t>(control.unique_id_result.load());
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (config == nullptr || config->blocking != 0) return ncclInvalidArgument;  // The project's rule.
  uint64_t key = 0;
  std::memcpy(&key, id.internal, sizeof(key));
  auto comm = std::make_unique<ncclComm>();
  {
    MutexLock lock(groups_mutex);
    std::shared_ptr<Group>& group = groups[key];
    if (group == nullptr) group = std::make_shared<Group>();
    comm->group = group;
  }
  MutexLock lock(comm->group->mutex);
  comm->group->size = ranks;
  comm->group->inputs.resize(static_cast<size_t>(ranks));
  ++comm->group->joined;
  comm->rank = rank;
  comm->polls = control.init_polls.load();
  *out = comm.release();
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
  {
    MutexLock lock(comm->group->mutex);
    if (comm->group->joined < comm->group->size) {
      *result = ncclInProgress;
      return ncclSuccess;
    }
  }
  if (comm->polls.load() != 0) {
    if (comm->polls.load() > 0) --comm->polls;
    *result = ncclInProgress;
    return ncclSuccess;
  }
  *result = static_cast<ncclResult_t>(control.async_result.load());
  return ncclSuccess;
}

ncclResult_t ncclCommRevoke(ncclComm_t comm, int flags) {
  if (flags != NCCL_REVOKE_DEFAULT) return ncclInvalidArgument;
  ++control.revokes;
  comm->aborted = true;
  comm->group->changed.NotifyAll();
  return ncclSuccess;
}

#ifndef FAKE_NCCL_WITHOUT_ABORT
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  ++control.aborts;
  while (control.abort_hangs.load()) usleep(1000);
  {
    MutexLock lock(comm->group->mutex);
    comm->aborted = true;
    comm->group->changed.NotifyAll();
  }
  if (void (*on_abort)() = control.on_abort.load()) on_abort();
  return ncclInProgress;  // As the real one: a thread of its own would free the communicator. Here nobody does.
}
#endif

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t comm, cudaStream_t stream) {
  if (operation != ncclSum) return ncclInvalidArgument;
  return Enqueue(comm, {comm, in, out, count, type, true}, stream);
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return Enqueue(comm, {comm, in, out, count, type, false}, stream);
}

}  // extern "C"

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace quicksilver::cuda_twin {

/// The value of a cudaGraphConditionalHandle.
struct Condition {
  std::atomic<unsigned int> value{0};
  unsigned int default_value = 0;
  bool assign_default = false;
};

/// Adds a node to what `graph` runs; it depends on `dependencies`.
cudaGraphNode_t AddGraphNode(cudaGraph_t graph, cudaGraphNodeType type, std::function<void()> work,
                             const std::vector<cudaGraphNode_t>& dependencies);

/// Whether every node from number `first` on is in `frontier` or `dropped`, or before one of them.
bool AllBefore(cudaGraph_t graph, size_t first, const std::vector<cudaGraphNode_t>& frontier,
               const std::vector<cudaGraphNode_t>& dropped);

/// A graph that a capture fills: the API knows it, but it is not the user's yet.
cudaGraph_t NewCapturedGraph();
/// Makes it the user's.
void AdoptGraph(cudaGraph_t graph);
/// Deletes it instead.
void DropGraph(cudaGraph_t graph);

size_t GraphsCount();
size_t GraphExecsCount();

}  // namespace quicksilver::cuda_twin

struct CUgraphNode_st {
  cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
  std::function<void()> work;
  std::vector<cudaGraphNode_t> dependencies;
  cudaGraph_t graph = nullptr;
  // Conditional nodes.
  cudaGraphConditionalNodeType condition_type = cudaGraphCondTypeIf;
  std::shared_ptr<quicksilver::cuda_twin::Condition> condition;
  std::vector<std::unique_ptr<CUgraph_st>> bodies;
  std::vector<cudaGraph_t> body_handles;  // What phGraph_out points to.
};

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
  std::vector<std::shared_ptr<quicksilver::cuda_twin::Condition>> conditions;
};

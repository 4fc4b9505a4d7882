#include "tests/support/cuda_twin/graph.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "common/mutex.h"
#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/graph_condition.h"
#include "tests/support/cuda_twin/settings.h"
#include "tests/support/cuda_twin/stream.h"

using quicksilver::cuda_twin::Condition;

/// What a graph was when it was instantiated.
struct ExecGraph {
  struct Node {
    std::function<void()> work;
    std::vector<size_t> dependencies;
    cudaGraphConditionalNodeType condition_type = cudaGraphCondTypeIf;
    std::shared_ptr<Condition> condition;
    std::vector<ExecGraph> bodies;
  };
  std::vector<Node> nodes;
  std::vector<std::shared_ptr<Condition>> conditions;
};

struct CUgraphExec_st {
  std::shared_ptr<const ExecGraph> graph;
};

namespace quicksilver::cuda_twin {
namespace {

struct Registry {
  Mutex mu;
  std::set<cudaGraph_t> graphs;       // Of the user.
  std::set<cudaGraph_t> body_graphs;  // And those of captures under way.
  std::set<cudaGraphExec_t> execs;
  std::map<cudaGraphConditionalHandle, std::weak_ptr<Condition>> conditions;
  cudaGraphConditionalHandle next_handle = 1;
};

Registry& State() {
  static auto* registry = new Registry;
  return *registry;
}

bool Lives(cudaGraph_t graph) {
  MutexLock lock(State().mu);
  return State().graphs.contains(graph) || State().body_graphs.contains(graph);
}

ExecGraph Snapshot(const CUgraph_st& graph) {
  ExecGraph exec;
  exec.conditions = graph.conditions;
  std::unordered_map<const CUgraphNode_st*, size_t> number;
  for (const auto& node : graph.nodes) {
    ExecGraph::Node copy;
    copy.work = node->work;
    for (cudaGraphNode_t dependency : node->dependencies) copy.dependencies.push_back(number.at(dependency));
    copy.condition_type = node->condition_type;
    copy.condition = node->condition;
    for (const auto& body : node->bodies) copy.bodies.push_back(Snapshot(*body));
    number[node.get()] = exec.nodes.size();
    exec.nodes.push_back(std::move(copy));
  }
  return exec;
}

void RunNodes(const ExecGraph& graph, uint32_t* random);

void RunNode(const ExecGraph::Node& node, uint32_t* random) {
  if (node.work) node.work();
  if (!node.condition) return;
  const auto value = [&] { return node.condition->value.load(std::memory_order_relaxed); };
  switch (node.condition_type) {
    case cudaGraphCondTypeWhile:
      while (value() != 0 && BrokenContext() == cudaSuccess) RunNodes(node.bodies[0], random);
      break;
    case cudaGraphCondTypeIf:
      if (value() != 0) {
        RunNodes(node.bodies[0], random);
      } else if (node.bodies.size() == 2) {
        RunNodes(node.bodies[1], random);
      }
      break;
    case cudaGraphCondTypeSwitch:
      if (value() < node.bodies.size()) RunNodes(node.bodies[value()], random);
      break;
  }
}

// In the order of capture, or in any that the dependencies allow when the thread order is shuffled.
void RunNodes(const ExecGraph& graph, uint32_t* random) {
  if (*random == 0) {
    for (const ExecGraph::Node& node : graph.nodes) RunNode(node, random);
    return;
  }
  std::vector<size_t> waiting(graph.nodes.size());
  std::vector<std::vector<size_t>> successors(graph.nodes.size());
  std::vector<size_t> ready;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    waiting[i] = graph.nodes[i].dependencies.size();
    for (size_t d : graph.nodes[i].dependencies) successors[d].push_back(i);
    if (waiting[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    *random = *random * 1664525u + 1013904223u;
    std::swap(ready[(*random >> 16) % ready.size()], ready.back());
    const size_t i = ready.back();
    ready.pop_back();
    RunNode(graph.nodes[i], random);
    for (size_t s : successors[i]) {
      if (--waiting[s] == 0) ready.push_back(s);
    }
  }
}

void ApplyDefaults(const ExecGraph& graph) {
  for (const auto& condition : graph.conditions) {
    if (condition->assign_default) condition->value = condition->default_value;
  }
  for (const ExecGraph::Node& node : graph.nodes) {
    for (const ExecGraph& body : node.bodies) ApplyDefaults(body);
  }
}

void RunGraph(const ExecGraph& graph) {
  ApplyDefaults(graph);
  const uint64_t seed = Execution().thread_order_seed.load(std::memory_order_relaxed);
  auto random = static_cast<uint32_t>(seed < 2 ? 0 : seed * 2 + 1);
  RunNodes(graph, &random);
}

void ForgetBodies(const CUgraph_st& graph) {
  for (const auto& node : graph.nodes) {
    for (const auto& body : node->bodies) {
      State().body_graphs.erase(body.get());
      ForgetBodies(*body);
    }
  }
}

cudaError_t AddConditional(cudaGraphNode_t* node, cudaGraph_t graph, const std::vector<cudaGraphNode_t>& dependencies,
                           cudaConditionalNodeParams* parameters) {
  Registry& registry = State();
  std::shared_ptr<Condition> condition;
  {
    MutexLock lock(registry.mu);
    const auto at = registry.conditions.find(parameters->handle);
    if (at != registry.conditions.end()) condition = at->second.lock();
  }
  const unsigned size = parameters->size;
  const bool size_fits = parameters->type == cudaGraphCondTypeWhile ? size == 1
                         : parameters->type == cudaGraphCondTypeIf  ? size == 1 || size == 2
                                                                    : size >= 1;
  if (!condition || !size_fits) return cudaErrorInvalidValue;
  cudaGraphNode_t added = AddGraphNode(graph, cudaGraphNodeTypeConditional, nullptr, dependencies);
  added->condition_type = parameters->type;
  added->condition = condition;
  MutexLock lock(registry.mu);
  for (unsigned i = 0; i < size; ++i) {
    added->bodies.push_back(std::make_unique<CUgraph_st>());
    added->body_handles.push_back(added->bodies.back().get());
    registry.body_graphs.insert(added->bodies.back().get());
  }
  parameters->phGraph_out = added->body_handles.data();
  *node = added;
  return cudaSuccess;
}

}  // namespace

cudaGraphNode_t AddGraphNode(cudaGraph_t graph, cudaGraphNodeType type, std::function<void()> work,
                             const std::vector<cudaGraphNode_t>& dependencies) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = type;
  node->work = std::move(work);
  node->dependencies = dependencies;
  node->graph = graph;
  graph->nodes.push_back(std::move(node));
  return graph->nodes.back().get();
}

cudaGraph_t NewCapturedGraph() {
  auto* graph = new CUgraph_st;
  MutexLock lock(State().mu);
  State().body_graphs.insert(graph);
  return graph;
}

void AdoptGraph(cudaGraph_t graph) {
  MutexLock lock(State().mu);
  State().body_graphs.erase(graph);
  State().graphs.insert(graph);
}

void DropGraph(cudaGraph_t graph) {
  MutexLock lock(State().mu);
  State().body_graphs.erase(graph);
  ForgetBodies(*graph);
  delete graph;
}

bool AllBefore(cudaGraph_t graph, size_t first, const std::vector<cudaGraphNode_t>& frontier,
               const std::vector<cudaGraphNode_t>& dropped) {
  std::unordered_set<cudaGraphNode_t> reached;
  std::vector<cudaGraphNode_t> open = frontier;
  open.insert(open.end(), dropped.begin(), dropped.end());
  while (!open.empty()) {
    cudaGraphNode_t node = open.back();
    open.pop_back();
    if (!reached.insert(node).second) continue;
    open.insert(open.end(), node->dependencies.begin(), node->dependencies.end());
  }
  return std::all_of(graph->nodes.begin() + static_cast<ptrdiff_t>(first), graph->nodes.end(),
                     [&](const auto& node) { return reached.contains(node.get()); });
}

size_t GraphsCount() {
  MutexLock lock(State().mu);
  return State().graphs.size();
}

size_t GraphExecsCount() {
  MutexLock lock(State().mu);
  return State().execs.size();
}

void SetGraphCondition(unsigned long long handle, unsigned int value) {
  std::shared_ptr<Condition> condition;
  {
    MutexLock lock(State().mu);
    const auto at = State().conditions.find(handle);
    if (at != State().conditions.end()) condition = at->second.lock();
  }
  if (!condition) {
    std::fprintf(stderr, "CUDA twin: a kernel sets condition %llu, which belongs to no living graph\n", handle);
    std::abort();
  }
  condition->value = value;
}

}  // namespace quicksilver::cuda_twin

using namespace quicksilver::cuda_twin;
using quicksilver::MutexLock;

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned int flags) {
  return Api("cudaGraphCreate", [&] {
    if (graph == nullptr || flags != 0) return cudaErrorInvalidValue;
    *graph = new CUgraph_st;
    MutexLock lock(State().mu);
    State().graphs.insert(*graph);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return Api("cudaGraphDestroy", [&] {
    MutexLock lock(State().mu);
    if (State().graphs.erase(graph) == 0) return cudaErrorInvalidValue;
    ForgetBodies(*graph);
    delete graph;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return Api("cudaGraphGetNodes", [&] {
    if (!Lives(graph) || count == nullptr) return cudaErrorInvalidValue;
    if (nodes != nullptr) {
      for (size_t i = 0; i < *count; ++i) nodes[i] = i < graph->nodes.size() ? graph->nodes[i].get() : nullptr;
      *count = std::min(*count, graph->nodes.size());
    } else {
      *count = graph->nodes.size();
    }
    return cudaSuccess;
  });
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph,
                                             unsigned int default_value, unsigned int flags) {
  return Api("cudaGraphConditionalHandleCreate", [&] {
    if (handle == nullptr || !Lives(graph) || flags > cudaGraphCondAssignDefault) return cudaErrorInvalidValue;
    auto condition = std::make_shared<Condition>();
    condition->default_value = default_value;
    condition->assign_default = flags == cudaGraphCondAssignDefault;
    graph->conditions.push_back(condition);
    MutexLock lock(State().mu);
    *handle = State().next_handle++;
    State().conditions[*handle] = condition;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                             const cudaGraphEdgeData*, size_t dependencies_count, cudaGraphNodeParams* parameters) {
  return Api("cudaGraphAddNode", [&] {
    if (node == nullptr || parameters == nullptr || !Lives(graph)) return cudaErrorInvalidValue;
    const std::vector<cudaGraphNode_t> before(dependencies, dependencies + dependencies_count);
    for (cudaGraphNode_t dependency : before) {
      if (dependency->graph != graph) return cudaErrorInvalidValue;
    }
    switch (parameters->type) {
      case cudaGraphNodeTypeEmpty:
        *node = AddGraphNode(graph, parameters->type, nullptr, before);
        return cudaSuccess;
      case cudaGraphNodeTypeConditional:
        return AddConditional(node, graph, before, &parameters->conditional);
      case cudaGraphNodeTypeGraph: {
        if (!Lives(parameters->graph.graph)) return cudaErrorInvalidValue;
        auto child = std::make_shared<const ExecGraph>(Snapshot(*parameters->graph.graph));
        *node = AddGraphNode(
            graph, parameters->type, [child] { RunGraph(*child); }, before);
        return cudaSuccess;
      }
      default:
        return cudaErrorNotSupported;
    }
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return Api("cudaGraphInstantiate", [&] {
    if (exec == nullptr || !Lives(graph)) return cudaErrorInvalidValue;
    *exec = new CUgraphExec_st{std::make_shared<const ExecGraph>(Snapshot(*graph))};
    MutexLock lock(State().mu);
    State().execs.insert(*exec);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(exec, graph, flags);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
  return Api("cudaGraphUpload", [&] {
    MutexLock lock(State().mu);
    return State().execs.contains(exec) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return Api("cudaGraphLaunch", [&] {
    std::shared_ptr<const ExecGraph> graph;
    {
      MutexLock lock(State().mu);
      if (!State().execs.contains(exec)) return cudaErrorInvalidValue;
      graph = exec->graph;
    }
    return Submit(stream, cudaGraphNodeTypeGraph, [graph] { RunGraph(*graph); });
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return Api("cudaGraphExecDestroy", [&] {
    MutexLock lock(State().mu);
    if (State().execs.erase(exec) == 0) return cudaErrorInvalidValue;
    delete exec;  // A launch under way keeps what it runs.
    return cudaSuccess;
  });
}

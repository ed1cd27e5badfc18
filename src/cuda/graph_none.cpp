// What needs CUDA's headers, in a build without them.
#include "hetlora/cuda/device.hpp"
#include "hetlora/cuda/graph_step.hpp"

namespace hetlora::cuda {

bool built_with_graphs() { return false; }

std::string device_name(at::Device device) { return device.str(); }

std::unique_ptr<StepRunner> make_graph_runner() { return nullptr; }

}  // namespace hetlora::cuda

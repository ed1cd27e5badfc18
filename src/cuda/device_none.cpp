// hetlora/cuda in a build without CUDA.
#include "hetlora/base/error.hpp"
#include "hetlora/cuda/device.hpp"

namespace hetlora::cuda {

bool built() { return false; }

int device_count() { return 0; }

at::Device use_device(int) {
    require_device();  // throws
    return at::kCPU;
}

std::int64_t free_memory_bytes(at::Device) { throw bug_error("cuda::free_memory_bytes in a build without CUDA"); }

void synchronise() {}

}  // namespace hetlora::cuda

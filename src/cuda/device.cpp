// Devices through LibTorch's device-neutral door: compiles without a CUDA toolkit.
#include "hetlora/cuda/device.hpp"

#include <ATen/DeviceAccelerator.h>

namespace hetlora::cuda {

bool built() { return true; }

int device_count() {
    // hasCUDA() says whether the library and a driver are there; both are asked once.
    static const int count = at::globalContext().hasCUDA() ? static_cast<int>(at::accelerator::deviceCount()) : 0;
    return count;
}

at::Device use_device(int node_mpi_rank) {
    require_device();
    const auto index = static_cast<at::DeviceIndex>(device_index_for(node_mpi_rank, device_count()));
    at::globalContext().lazyInitDevice(at::kCUDA);
    at::accelerator::setDeviceIndex(index);
    return {at::kCUDA, index};
}

std::int64_t free_memory_bytes(at::Device device) {
    return static_cast<std::int64_t>(at::accelerator::getMemoryInfo(device.index()).first);
}

void synchronise() { at::accelerator::synchronizeDevice(at::accelerator::getDeviceIndex()); }

}  // namespace hetlora::cuda

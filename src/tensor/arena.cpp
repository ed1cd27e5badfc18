#include "hetlora/tensor/arena.hpp"

#include <algorithm>

namespace hetlora {

at::Tensor Arena::take(at::IntArrayRef shape) {
    std::int64_t count = 1;
    for (const auto extent : shape) count *= extent;
    const std::int64_t elements_per_line = 64 / static_cast<std::int64_t>(c10::elementSize(dtype_));
    const std::int64_t rounded = (count + elements_per_line - 1) / elements_per_line * elements_per_line;
    const std::int64_t start = used_;
    used_ += rounded;
    wanted_ = std::max(wanted_, used_);
    if (block_.defined() && used_ <= block_.numel()) return block_.narrow(0, start, count).view(shape);
    overflow_.push_back(
        at::empty({std::max<std::int64_t>(count, 1)}, at::TensorOptions().dtype(dtype_).device(device_)));
    return overflow_.back().narrow(0, 0, count).view(shape);
}

void Arena::reset() {
    used_ = 0;
    if (overflow_.empty()) return;
    overflow_.clear();
    block_ = at::Tensor();  // free before taking more
    block_ = at::empty({wanted_}, at::TensorOptions().dtype(dtype_).device(device_));
}

std::int64_t Arena::capacity_bytes() const {
    return block_.defined() ? block_.numel() * static_cast<std::int64_t>(block_.element_size()) : 0;
}

}  // namespace hetlora

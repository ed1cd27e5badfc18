// The window rule; its definition is in windows.hpp.
#include "hetlora/data/windows.hpp"

#include <algorithm>
#include <cstring>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

/// First index in [begin, end) with a set mask, or end.
std::int64_t next_loss(std::span<const std::uint8_t> mask, std::int64_t begin, std::int64_t end) {
    if (begin >= end) return end;
    const auto* found = std::memchr(mask.data() + begin, 1, static_cast<std::size_t>(end - begin));
    return found == nullptr ? end : static_cast<const std::uint8_t*>(found) - mask.data();
}

}  // namespace

void check_window_shape(const WindowShape& shape) {
    if (shape.length < 1 || shape.length > INT32_MAX) {
        throw usage_error("{} is no length of a window - data.sequence_length - give at least 1", shape.length);
    }
    if (shape.overlap < 0 || shape.overlap >= shape.length) {
        throw usage_error("overlap {} does not fit windows of {} tokens - data.overlap - give 0 to {}", shape.overlap,
                          shape.length, shape.length - 1);
    }
}

std::vector<Window> list_windows(std::span<const std::uint8_t> mask, const WindowShape& shape) {
    const auto n = static_cast<std::int64_t>(mask.size());
    const std::int64_t step = shape.length - shape.overlap;
    std::vector<Window> windows;
    std::int64_t p = next_loss(mask, 1, n);
    while (p < n) {
        // The window that counts p: the first w with p <= s_w + L. Jumping there skips the dropped ones.
        const std::int64_t w = p <= shape.length ? 0 : (p - shape.length + step - 1) / step;
        const std::int64_t begin = shape.begin(w);
        const std::int64_t end = std::min(n, begin + shape.length + 1);
        Window window{.window = static_cast<std::int32_t>(w), .rows = 0, .n_loss = 0};
        while (p < end) {
            window.rows = static_cast<std::int32_t>(p - begin);
            ++window.n_loss;
            p = next_loss(mask, p + 1, n);
        }
        windows.push_back(window);
    }
    return windows;
}

IndexRange window_stretch(std::int64_t n_tokens, std::int64_t window, const WindowShape& shape) {
    const std::int64_t begin = std::min(n_tokens, shape.begin(window));
    return {begin, std::min(n_tokens, begin + shape.length + 1)};
}

WindowTokens cut_window(const SequenceTokens& stretch, std::int64_t window, const WindowShape& shape) {
    WindowTokens result;
    const std::int64_t begin = shape.begin(window);
    const std::int64_t counted_before = shape.counted_before(window);
    const auto last = static_cast<std::int64_t>(stretch.ids.size()) - 1;  // inputs are [0, last) of the stretch
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i < last; ++i) {
        const auto next = static_cast<std::size_t>(i + 1);
        const bool counts = stretch.mask[next] == 1 && begin + i + 1 > counted_before;
        result.inputs.push_back(stretch.ids[static_cast<std::size_t>(i)]);
        result.targets.push_back(counts ? stretch.ids[next] : -1);
        if (counts) {
            rows = i + 1;
            ++result.n_loss;
        }
    }
    result.inputs.resize(static_cast<std::size_t>(rows));
    result.targets.resize(static_cast<std::size_t>(rows));
    return result;
}

}  // namespace hetlora

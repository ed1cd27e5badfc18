// The window rule: how a sequence longer than the model's input is cut, each loss token in exactly one window.
//
// A sequence of n tokens t[0..n), window length L (input rows), overlap o (0 <= o < L). Window w = 0, 1, ...
//     starts at   s_w = w (L - o)
//     inputs      t[s_w .. s_w + L)          } both clipped to the sequence:
//     targets     t[s_w + 1 .. s_w + L]      } the last input is t[n - 2]
// Target position p counts in window w iff mask[p] == 1 and (w == 0 or p > s_{w-1} + L): the first window that
// reaches a token scores it, later ones see it as context. A window in which nothing counts is dropped but keeps its
// number; rows after a window's last counting target are trimmed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/store/corpus_file.hpp"

namespace hetlora {

/// L and o of the rule, in tokens.
struct WindowShape {
    std::int64_t length = 128;  ///< L > 0
    std::int64_t overlap = 32;  ///< 0 <= o < L

    /// s_w
    [[nodiscard]] std::int64_t begin(std::int64_t window) const noexcept { return window * (length - overlap); }
    /// The last target position of the window before: positions up to it are counted there (-1 for window 0).
    [[nodiscard]] std::int64_t counted_before(std::int64_t window) const noexcept {
        return window == 0 ? -1 : begin(window - 1) + length;
    }
};

/// @throws Error (usage) naming data.sequence_length or data.overlap
void check_window_shape(const WindowShape& shape);

/// One window of a sequence.
struct Window {
    std::int32_t window = 0;  ///< w
    std::int32_t rows = 0;    ///< input rows after trimming, 1..L
    std::int32_t n_loss = 0;  ///< targets that count, 1..rows
    friend bool operator==(const Window&, const Window&) = default;
};

/// The windows of a sequence in which something counts, by w.
/// @param mask [n] of the whole sequence; mask[0] is ignored (nothing predicts the first token)
[[nodiscard]] std::vector<Window> list_windows(std::span<const std::uint8_t> mask, const WindowShape& shape);

/// A window ready for the model.
struct WindowTokens {
    std::vector<std::int32_t> inputs;   ///< [rows] token ids
    std::vector<std::int32_t> targets;  ///< [rows] the next token's id where it counts, else -1 (no loss)
    std::int64_t n_loss = 0;            ///< targets that are not -1
};

/// The tokens of the sequence that window w needs: [s_w, min(n, s_w + L + 1)).
[[nodiscard]] IndexRange window_stretch(std::int64_t n_tokens, std::int64_t window, const WindowShape& shape);

/// Cuts window w out of its stretch of the sequence (see window_stretch). Nothing counts: no rows.
[[nodiscard]] WindowTokens cut_window(const SequenceTokens& stretch, std::int64_t window, const WindowShape& shape);

}  // namespace hetlora

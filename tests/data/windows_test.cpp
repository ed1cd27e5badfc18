// The window rule against its definition, spelled out token by token.
#include "hetlora/data/windows.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

struct Literal {
    std::int64_t window;
    std::vector<std::int64_t> counting;  ///< target positions
};

/// The rule as the documentation states it, without any shortcut.
std::vector<Literal> literal_rule(const std::vector<std::uint8_t>& mask, std::int64_t length, std::int64_t overlap) {
    const auto n = static_cast<std::int64_t>(mask.size());
    std::vector<Literal> result;
    for (std::int64_t w = 0;; ++w) {
        const std::int64_t begin = w * (length - overlap);
        if (begin + 1 >= n) break;
        Literal window{.window = w, .counting = {}};
        for (std::int64_t p = begin + 1; p <= begin + length && p < n; ++p) {
            const bool counts =
                mask[static_cast<std::size_t>(p)] == 1 && (w == 0 || p > (w - 1) * (length - overlap) + length);
            if (counts) window.counting.push_back(p);
        }
        if (!window.counting.empty()) result.push_back(window);
    }
    return result;
}

SequenceTokens random_sequence(int n, int sample, double share) {
    SequenceTokens tokens;
    for (int i = 0; i < n; ++i) {
        tokens.ids.push_back(100 + i);  // the id tells the position
        tokens.mask.push_back(i > 0 && uniform01(hash_seed(5, Purpose::test, sample, i)) < share ? 1 : 0);
    }
    return tokens;
}

SequenceTokens stretch_of(const SequenceTokens& tokens, IndexRange range) {
    return {.ids = {tokens.ids.begin() + range.begin, tokens.ids.begin() + range.end},
            .mask = {tokens.mask.begin() + range.begin, tokens.mask.begin() + range.end}};
}

TEST(Windows, agree_with_the_literal_rule) {
    int compared = 0;
    for (int sample = 0; sample < 400; ++sample) {
        const int n = 1 + static_cast<int>(hash_seed(6, Purpose::test, sample) % 70);
        const SequenceTokens tokens = random_sequence(n, sample, sample % 3 == 0 ? 0.05 : 0.5);
        for (const WindowShape shape : {WindowShape{8, 0}, {8, 3}, {8, 7}, {1, 0}, {16, 4}, {128, 32}}) {
            const auto expected = literal_rule(tokens.mask, shape.length, shape.overlap);
            const auto windows = list_windows(tokens.mask, shape);
            ASSERT_EQ(windows.size(), expected.size());
            for (std::size_t i = 0; i < windows.size(); ++i) {
                const auto& counting = expected[i].counting;
                const std::int64_t begin = shape.begin(expected[i].window);
                EXPECT_EQ(windows[i].window, expected[i].window);
                EXPECT_EQ(windows[i].n_loss, static_cast<std::int64_t>(counting.size()));
                EXPECT_EQ(windows[i].rows, counting.back() - begin);

                const WindowTokens cut = cut_window(stretch_of(tokens, window_stretch(n, windows[i].window, shape)),
                                                    windows[i].window, shape);
                ASSERT_EQ(cut.inputs.size(), static_cast<std::size_t>(windows[i].rows));
                ASSERT_EQ(cut.targets.size(), cut.inputs.size());
                EXPECT_EQ(cut.n_loss, windows[i].n_loss);
                for (std::size_t row = 0; row < cut.inputs.size(); ++row) {
                    const std::int64_t position = begin + static_cast<std::int64_t>(row);
                    EXPECT_EQ(cut.inputs[row], 100 + position);
                    const bool counts = std::ranges::find(counting, position + 1) != counting.end();
                    EXPECT_EQ(cut.targets[row], counts ? 101 + position : -1);
                }
                ++compared;
            }
        }
    }
    EXPECT_GT(compared, 2000);
}

TEST(Windows, every_loss_token_is_in_exactly_one_window) {
    for (int sample = 0; sample < 100; ++sample) {
        const SequenceTokens tokens = random_sequence(200, sample, 0.4);
        std::vector<std::uint8_t> seen(tokens.ids.size(), 0);
        const WindowShape shape{16, 5};
        for (const Window& w : list_windows(tokens.mask, shape)) {
            for (const std::int32_t target :
                 cut_window(stretch_of(tokens, window_stretch(200, w.window, shape)), w.window, shape).targets) {
                if (target >= 0) ++seen[static_cast<std::size_t>(target - 100)];
            }
        }
        EXPECT_EQ(seen, tokens.mask);
    }
}

TEST(Windows, a_dropped_window_keeps_its_number) {
    std::vector<std::uint8_t> mask(30, 0);
    mask[2] = mask[25] = 1;
    // Windows of 8 without overlap start at 0, 8, 16, 24; positions 9..24 hold no loss.
    const auto windows = list_windows(mask, {8, 0});
    ASSERT_EQ(windows.size(), 2U);
    EXPECT_EQ(windows[0], (Window{.window = 0, .rows = 2, .n_loss = 1}));
    EXPECT_EQ(windows[1], (Window{.window = 3, .rows = 1, .n_loss = 1}));
}

TEST(Windows, a_window_that_fits_exactly_needs_no_second) {
    EXPECT_EQ(list_windows(std::vector<std::uint8_t>{0, 1, 1, 1, 1}, {4, 2}), (std::vector<Window>{{0, 4, 4}}));
    EXPECT_EQ(list_windows(std::vector<std::uint8_t>{0, 1, 1, 1, 1, 1}, {4, 2}),
              (std::vector<Window>{{0, 4, 4}, {1, 3, 1}}));
}

TEST(Windows, sequences_without_loss_have_none) {
    EXPECT_TRUE(list_windows({}, {8, 0}).empty());
    EXPECT_TRUE(list_windows(std::vector<std::uint8_t>{0}, {8, 0}).empty());
    EXPECT_TRUE(list_windows(std::vector<std::uint8_t>{1}, {8, 0}).empty()) << "nothing predicts token 0";
    EXPECT_TRUE(list_windows(std::vector<std::uint8_t>(50, 0), {8, 0}).empty());
    EXPECT_TRUE(cut_window({}, 0, {8, 0}).inputs.empty());
}

TEST(Windows, impossible_shapes_name_their_key) {
    const auto error_of = [](const WindowShape& shape) -> std::string {
        try {
            check_window_shape(shape);
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::usage);
            return error.what();
        }
        return {};
    };
    EXPECT_NE(error_of({0, 0}).find("data.sequence_length"), std::string::npos);
    EXPECT_NE(error_of({8, 8}).find("data.overlap"), std::string::npos);
    EXPECT_NE(error_of({8, -1}).find("data.overlap"), std::string::npos);
    EXPECT_EQ(error_of({8, 7}), "");
}

}  // namespace
}  // namespace hetlora

// Values of an axis as text: separators, ranges, equality. See hetlora/sweep/sweep_file.hpp.
#include <fmt/format.h>

#include <optional>

#include "hetlora/base/text.hpp"
#include "hetlora/config/schema.hpp"
#include "hetlora/sweep/sweep_file.hpp"

namespace hetlora::sweep {
namespace {

constexpr std::uint64_t longest_range = 100'000;

std::optional<std::vector<std::string>> range(std::string_view text) {
    const auto dots = text.find("..");
    if (dots == std::string_view::npos) return {};
    const auto more = text.find("..", dots + 2);
    const auto last_text = text.substr(dots + 2, more == std::string_view::npos ? more : more - dots - 2);
    const auto first = parse_integer(text.substr(0, dots));
    const auto last = parse_integer(last_text);
    const auto step =
        more == std::string_view::npos ? std::optional<std::int64_t>(1) : parse_integer(text.substr(more + 2));
    if (!first || !last || !step || *step < 1 || *last < *first) return {};
    const auto n =
        (static_cast<std::uint64_t>(*last) - static_cast<std::uint64_t>(*first)) / static_cast<std::uint64_t>(*step);
    if (n > longest_range) return {};
    std::vector<std::string> values;
    for (std::uint64_t i = 0; i <= n; ++i) {
        values.push_back(fmt::format("{}", *first + static_cast<std::int64_t>(i) * *step));
    }
    return values;
}

bool holds_a_list(const std::string& key) {
    const auto* row = find_config_key(key);
    return row != nullptr && row->type == "list";
}

}  // namespace

std::vector<std::string> split_values(const std::string& key, std::string_view text) {
    const bool bars = text.find('|') != std::string_view::npos || holds_a_list(key);
    std::vector<std::string> values;
    for (const auto& part : split(text, bars ? '|' : ',')) {
        if (auto numbers = range(part)) {
            values.insert(values.end(), numbers->begin(), numbers->end());
        } else {
            values.push_back(part);
        }
    }
    return values;
}

bool same_value(const std::string& a, const std::string& b) {
    if (a == b) return true;
    const auto x = parse_number(a);
    const auto y = parse_number(b);
    return x && y && *x == *y;
}

}  // namespace hetlora::sweep

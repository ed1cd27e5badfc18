#include "schema_builder.hpp"

namespace hetlora::config_detail {

bool Range::contains(double value) const {
    return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
}

std::string Range::text() const {
    if (high == std::numeric_limits<double>::infinity()) return (low_open ? "> " : ">= ") + shortest_text(low);
    return fmt::format("in {}{}, {}{}", low_open ? '(' : '[', shortest_text(low), shortest_text(high),
                       high_open ? ')' : ']');
}

std::optional<std::string> text_problem(std::string_view text) {
    const bool has_control =
        std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 32; });
    if (has_control) return "control characters and line breaks cannot be kept in a config file";
    if (text.find('#') != std::string_view::npos) {
        return fmt::format("'{}': '#' starts a comment in a config file; choose a value without it", text);
    }
    if (text.find("${") != std::string_view::npos) {
        return fmt::format("'{}': \"${{\" is left after variables were expanded; choose a value without it", text);
    }
    if (text != trim(text)) return fmt::format("'{}': blanks at the ends cannot be kept in a config file", text);
    if (text.size() >= 2 && text.starts_with('"') && text.ends_with('"')) {
        return fmt::format("{}: quotes around the whole value cannot be kept in a config file", text);
    }
    return {};
}

std::string not_among(std::string_view text, const std::vector<std::string>& choices, std::string_view allowed) {
    return fmt::format("'{}' is not one of {}{}", text, allowed, did_you_mean(text, choices));
}

NameList parse_names(std::string_view text, const std::vector<std::string>& known) {
    const auto parts = split(text, ',');
    for (std::size_t i = 0; i < parts.size(); ++i) {
        if (std::find(known.begin(), known.end(), parts[i]) == known.end()) {
            return {{}, not_among(parts[i], known, join(known, ", "))};
        }
        if (std::find(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(i), parts[i]) !=
            parts.begin() + static_cast<std::ptrdiff_t>(i)) {
            return {{}, fmt::format("'{}' stands in the list twice", parts[i])};
        }
    }
    NameList list;
    for (const auto& name : known) {
        if (std::find(parts.begin(), parts.end(), name) != parts.end()) list.names.push_back(name);
    }
    return list;
}

}  // namespace hetlora::config_detail

// The words of every closed set of values, as they stand in a config file (private to config).
#pragma once

#include <span>
#include <string_view>

#include "hetlora/config/settings.hpp"

namespace hetlora::config_detail {

/// One word for one value of an enum. The first word of a value is the one that is written; further ones are read.
template <typename E>
struct Word {
    std::string_view text;
    E value;
};

/// All words of an enum, in the order in which they are shown (defined for the enums of settings.hpp).
template <typename E>
[[nodiscard]] std::span<const Word<E>> words_of();

}  // namespace hetlora::config_detail

// Shorthands of the config tests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "hetlora/base/error.hpp"
#include "hetlora/config/load.hpp"

namespace hetlora::test {

/// Settings from text named a.ini and overrides, with nothing required.
inline Settings loaded(std::string_view text, const std::vector<std::string>& overrides = {},
                       RequiredFor task = RequiredFor::nothing) {
    return load_settings_text(text, "a.ini", overrides, task);
}

/// The lines of the error that loading gives, without heading and closing line; empty if there is no error.
inline std::vector<std::string> problems(std::string_view text, const std::vector<std::string>& overrides = {},
                                         RequiredFor task = RequiredFor::nothing) {
    std::vector<std::string> lines;
    try {
        (void)loaded(text, overrides, task);
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        const std::string_view all = error.what();
        for (std::size_t at = all.find("\n  "); at != std::string_view::npos; at = all.find("\n  ", at + 1)) {
            const auto end = all.find('\n', at + 1);
            lines.emplace_back(all.substr(at + 3, end - at - 3));
        }
    }
    return lines;
}

}  // namespace hetlora::test

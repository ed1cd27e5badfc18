// What an action throws, for tests of error codes and messages.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "hetlora/base/error.hpp"

namespace hetlora::test {

/// The error that `action` throws; fails the test if it throws none.
template <typename Action>
Error error_of(const Action& action) {
    try {
        action();
    } catch (const Error& error) {
        return error;
    }
    ADD_FAILURE() << "no error";
    return {ExitCode::ok, "no error"};
}

/// Its code, ok if there is none. Expects every one of `words` in its message.
template <typename Action>
ExitCode code_of(const Action& action, const std::vector<std::string>& words = {}) {
    try {
        action();
    } catch (const Error& error) {
        for (const std::string& word : words) {
            EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
                << word << " is not in: " << error.what();
        }
        return error.code();
    }
    return ExitCode::ok;
}

}  // namespace hetlora::test

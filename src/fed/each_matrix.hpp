// A loop over matrices on LibTorch's threads whose error does not depend on who was first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "hetlora/tensor/torch.hpp"

namespace hetlora {

/// Calls work(m) for every m < n_matrices. All are tried; then the error of the first matrix that had one is thrown:
/// whichever thread fails first would otherwise choose which matrix the message names.
template <typename Work>
void for_each_matrix(std::size_t n_matrices, const Work& work) {
    std::vector<std::exception_ptr> errors(n_matrices);
    at::parallel_for(0, static_cast<std::int64_t>(n_matrices), 1, [&](std::int64_t begin, std::int64_t end) {
        for (auto m = static_cast<std::size_t>(begin); m < static_cast<std::size_t>(end); ++m) {
            try {
                work(m);
            } catch (...) {
                errors[m] = std::current_exception();
            }
        }
    });
    for (const auto& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace hetlora

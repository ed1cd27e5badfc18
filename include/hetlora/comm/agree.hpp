// One process's failure becomes everybody's clear error, without a hang.
//
// Every phase of a run that can fail on one process (reading data, training a pack, writing a file on root) runs
// inside agree(). Whatever one process throws, all processes learn of it at the end of the phase and throw the same
// AgreedError, with the message of the first failing mpi_rank and its exit code.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "hetlora/comm/transport.hpp"

namespace hetlora {

/// An Error that every process throws at the same place: the processes are in step and may end in an orderly way.
class AgreedError : public Error {
public:
    AgreedError(ExitCode code, std::string text, int failing_mpi_rank)
        : Error(code, std::move(text)), failing_mpi_rank_(failing_mpi_rank) {}
    /// Only one process needs to print the text: root.
    [[nodiscard]] int failing_mpi_rank() const noexcept { return failing_mpi_rank_; }

private:
    int failing_mpi_rank_;
};

/// Collective: tells all processes whether one of them failed.
/// @param failure the exception that this process caught, or null
/// @throws AgreedError on every process if one of them failed. Costs one small all-reduction when nobody did.
void agree_on_failure(Transport& transport, std::string_view phase, const std::exception_ptr& failure);

/// Runs `function` on every process and returns its result, or throws the same AgreedError everywhere.
/// The function must not use the transport: a process that failed would leave the others waiting.
/// A TransportError passes straight through (the processes are out of step: the caller has to abort).
template <typename Function>
auto agree(Transport& transport, std::string_view phase, Function&& function) -> std::invoke_result_t<Function> {
    using Result = std::invoke_result_t<Function>;
    std::exception_ptr failure;
    if constexpr (std::is_void_v<Result>) {
        try {
            std::forward<Function>(function)();
        } catch (const TransportError&) {
            throw;
        } catch (...) {
            failure = std::current_exception();
        }
        agree_on_failure(transport, phase, failure);
    } else {
        std::optional<Result> result;
        try {
            result.emplace(std::forward<Function>(function)());
        } catch (const TransportError&) {
            throw;
        } catch (...) {
            failure = std::current_exception();
        }
        agree_on_failure(transport, phase, failure);
        return std::move(*result);
    }
}

}  // namespace hetlora

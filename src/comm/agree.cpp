#include "hetlora/comm/agree.hpp"

#include <array>
#include <cstring>
#include <new>
#include <vector>

namespace hetlora {

namespace {

struct Failure {
    ExitCode code = ExitCode::bug;
    std::string text;
};

Failure describe(const std::exception_ptr& failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const Error& error) {
        return {error.code(), error.what()};
    } catch (const std::bad_alloc&) {
        return {ExitCode::environment,
                "out of memory - ask for more memory per process, use fewer processes per node, or lower "
                "compute.pack_tokens"};
    } catch (const std::exception& error) {
        return {ExitCode::bug, fmt::format("unexpected error: {} - please report this", error.what())};
    } catch (...) {
        return {ExitCode::bug, "unexpected error of unknown type - please report this"};
    }
}

}  // namespace

void agree_on_failure(Transport& transport, std::string_view phase, const std::exception_ptr& failure) {
    // The maximum of (mpi_size - mpi_rank) names the lowest failing mpi_rank; 0 says that nobody failed.
    const int size = transport.mpi_size();
    std::array<std::int64_t, 1> claim{failure ? size - transport.mpi_rank() : 0};
    transport.all_max(claim);
    if (claim[0] == 0) return;

    const int first = size - static_cast<int>(claim[0]);
    std::array<std::int64_t, 1> n_failed{failure ? 1 : 0};
    transport.all_sum(n_failed);
    const Failure mine = failure ? describe(failure) : Failure{};
    std::array<std::int64_t, 2> header{static_cast<std::int64_t>(mine.code), std::ssize(mine.text)};
    transport.broadcast_values(header, first);
    std::string text = mine.text;
    text.resize(static_cast<std::size_t>(header[1]));
    transport.broadcast_values(text, first);

    std::string where;
    if (size > 1) {
        where = fmt::format("\n  (on mpi_rank {} of {}, host {}, phase: {}{})", first, size,
                            transport.hosts()[static_cast<std::size_t>(first)], phase,
                            n_failed[0] > 1 ? fmt::format("; {} processes failed in all", n_failed[0]) : "");
    }
    throw AgreedError(static_cast<ExitCode>(header[0]), text + where, first);
}

}  // namespace hetlora

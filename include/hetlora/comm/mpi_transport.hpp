// Transport over MPI, the life time of MPI, and the check that the launcher really started an MPI job.
// Only src/comm/mpi_transport.cpp sees mpi.h.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "hetlora/comm/transport.hpp"

namespace hetlora {

/// Initialises MPI (thread level FUNNELED) and finalizes it at the end of its scope. Keep it in main(), outside the
/// try block, so that it outlives every HDF5 object and every Transport.
/// While an exception unwinds it does not finalize: MPI_Finalize waits for the other processes, which may never come.
class MpiSession {
public:
    /// @throws Error (environment) if the launcher started several processes that MPI does not connect, or if MPI
    ///         cannot start
    MpiSession(int* argc, char*** argv);
    ~MpiSession();
    MpiSession(MpiSession&& other) noexcept;
    MpiSession& operator=(MpiSession&&) = delete;
    MpiSession(const MpiSession&) = delete;
    MpiSession& operator=(const MpiSession&) = delete;

    /// "Open MPI v4.1.4, ..." as the library names itself.
    [[nodiscard]] static std::string library_version();

private:
    int exceptions_at_start_ = 0;
    bool owns_ = false;
};

/// A Transport over a duplicate of MPI_COMM_WORLD. Must be destroyed before the session.
/// @param message_bytes largest single message; smaller values are for tests
[[nodiscard]] std::unique_ptr<Transport> make_mpi_transport(const MpiSession& session,
                                                            std::int64_t message_bytes = largest_message_bytes);

/// Looks up an environment variable; null if it is not set.
using EnvironmentLookup = std::function<const char*(const char*)>;

/// Finds the launch mistake in which N processes each believe to be alone and would all run the whole experiment.
/// @param mpi_size size that MPI reports, or 0 before MPI is initialised (then: would it be able to connect?)
/// @throws Error (environment) naming what was found and the command that mends it
void check_launch(int mpi_size, const EnvironmentLookup& lookup);

}  // namespace hetlora

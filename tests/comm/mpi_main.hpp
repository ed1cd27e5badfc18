// For tests that run under mpirun: the transport over all processes of the test program.
#pragma once

#include <cstdint>
#include <memory>

#include "hetlora/comm/mpi_transport.hpp"

namespace hetlora::testing_mpi {

/// The transport of this test program (all tests share it).
Transport& transport();
/// One more transport whose messages hold at most this many bytes (collective).
std::unique_ptr<Transport> transport_with_messages_of(std::int64_t message_bytes);

}  // namespace hetlora::testing_mpi

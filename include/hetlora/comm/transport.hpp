// How the processes of a run exchange bytes. The federated loop sees only this interface, so the same code runs in
// one process (LocalTransport), over threads in tests (ThreadedTransport) and over MPI (mpi_transport.hpp).
//
// Every public operation is a collective: all mpi_ranks call it, in the same order, with the sizes named below.
// The root of every operation is mpi_rank 0 unless a root is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "hetlora/base/error.hpp"

namespace hetlora {

/// A collective itself failed: the processes are no longer in step, so nobody may start another collective.
/// The only way out is Transport::abort.
class TransportError : public Error {
public:
    explicit TransportError(std::string text) : Error(ExitCode::environment, std::move(text)) {}
};

/// Where this process stands among the others.
struct TransportPlace {
    int mpi_rank = 0;
    int mpi_size = 1;
    int node_mpi_rank = 0;           ///< position among the processes of this node
    int node_mpi_size = 1;           ///< processes on this node
    std::vector<std::string> hosts;  ///< host name of every mpi_rank
};

/// Payload bytes that crossed between this process and the root. The root itself counts nothing, so the sum over all
/// processes counts every byte once (and is 0 in a single process). Headers and MPI's own copies are not included.
struct Traffic {
    std::int64_t down_bytes = 0;     ///< received from broadcasts
    std::int64_t up_bytes = 0;       ///< handed to gathers and reductions
    std::int64_t control_bytes = 0;  ///< small all-reductions (both ways)
    [[nodiscard]] std::int64_t total_bytes() const { return down_bytes + up_bytes + control_bytes; }
};

/// Messages larger than this are cut into pieces, because MPI counts are 32-bit integers.
inline constexpr std::int64_t largest_message_bytes = std::int64_t{1} << 30;

class Transport {
public:
    virtual ~Transport() = default;
    Transport(const Transport&) = delete;
    Transport& operator=(const Transport&) = delete;

    [[nodiscard]] int mpi_rank() const { return place_.mpi_rank; }
    [[nodiscard]] int mpi_size() const { return place_.mpi_size; }
    [[nodiscard]] bool is_root() const { return place_.mpi_rank == 0; }
    [[nodiscard]] int node_mpi_rank() const { return place_.node_mpi_rank; }
    [[nodiscard]] int node_mpi_size() const { return place_.node_mpi_size; }
    /// Host name of every mpi_rank (size mpi_size()).
    [[nodiscard]] const std::vector<std::string>& hosts() const { return place_.hosts; }
    [[nodiscard]] const Traffic& traffic() const { return traffic_; }
    /// All payload bytes counted so far (see Traffic).
    [[nodiscard]] std::int64_t bytes_sent() const { return traffic_.total_bytes(); }

    /// Copies the root's bytes to everybody. All processes give a span of the same size.
    void broadcast(std::span<std::byte> bytes, int root = 0);
    /// Collects one byte string of any size per process.
    /// @return on root one entry per mpi_rank, in order; elsewhere empty
    [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<const std::byte> bytes);
    /// Element-wise sum over processes, to `out` on root (same size as `values`; ignored elsewhere, may be empty).
    /// The integer sum wraps around silently: the caller guarantees the range.
    void reduce_sum(std::span<const std::int64_t> values, std::span<std::int64_t> out);
    /// As above in floating point: the result may depend on the number of processes (comm.reduction = fast).
    void reduce_sum(std::span<const double> values, std::span<double> out);
    /// Element-wise sum or maximum over processes, in place, known to all afterwards. For small arrays.
    void all_sum(std::span<std::int64_t> values);
    void all_max(std::span<std::int64_t> values);
    /// Returns when every process has come here.
    void barrier();
    /// Ends every process of the run at once with this exit code; does not return.
    [[noreturn]] virtual void abort(int exit_code) = 0;

    /// broadcast() of a contiguous range of plain values.
    template <std::ranges::contiguous_range Values>
    void broadcast_values(Values&& values, int root = 0) {
        static_assert(std::is_trivially_copyable_v<std::ranges::range_value_t<Values>>);
        broadcast(std::as_writable_bytes(std::span(std::ranges::data(values), std::ranges::size(values))), root);
    }

protected:
    Transport() = default;
    explicit Transport(TransportPlace place) : place_(std::move(place)) {}

    TransportPlace place_;

private:
    virtual void do_broadcast(std::span<std::byte> bytes, int root) = 0;
    virtual std::vector<std::vector<std::byte>> do_gather(std::span<const std::byte> bytes) = 0;
    virtual void do_reduce_sum(std::span<const std::int64_t> values, std::span<std::int64_t> out) = 0;
    virtual void do_reduce_sum(std::span<const double> values, std::span<double> out) = 0;
    virtual void do_all_sum(std::span<std::int64_t> values) = 0;
    virtual void do_all_max(std::span<std::int64_t> values) = 0;
    virtual void do_barrier() = 0;

    Traffic traffic_;
};

/// One process, no communication.
class LocalTransport final : public Transport {
public:
    LocalTransport();
    [[noreturn]] void abort(int exit_code) override;

private:
    void do_broadcast(std::span<std::byte>, int) override {}
    std::vector<std::vector<std::byte>> do_gather(std::span<const std::byte> bytes) override;
    void do_reduce_sum(std::span<const std::int64_t> values, std::span<std::int64_t> out) override;
    void do_reduce_sum(std::span<const double> values, std::span<double> out) override;
    void do_all_sum(std::span<std::int64_t>) override {}
    void do_all_max(std::span<std::int64_t>) override {}
    void do_barrier() override {}
};

/// This machine's name, "unknown" if the system does not tell.
[[nodiscard]] std::string host_name();

}  // namespace hetlora

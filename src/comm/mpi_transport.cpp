#include "hetlora/comm/mpi_transport.hpp"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace hetlora {

namespace {

/// Turns a return code into an Error that says which operation failed, where, and what MPI says about it.
void check(int code, const char* operation) {
    if (code == MPI_SUCCESS) return;
    std::array<char, MPI_MAX_ERROR_STRING> text{};
    int length = 0;
    if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) length = 0;
    throw TransportError(fmt::format(
        "MPI {} failed with code {} ({}) on host {} - a process or the network is gone: see the output of the other "
        "processes; what a run has committed stays readable in its folder",
        operation, code, std::string_view(text.data(), static_cast<std::size_t>(length)), host_name()));
}

constexpr int bytes_tag = 71;

class MpiTransport final : public Transport {
public:
    explicit MpiTransport(std::int64_t message_bytes) : message_bytes_(message_bytes) {
        if (message_bytes < 1 || message_bytes > largest_message_bytes) {
            throw bug_error("MPI transport: message size {} outside [1, {}]", message_bytes, largest_message_bytes);
        }
        check(MPI_Comm_dup(MPI_COMM_WORLD, &world_), "Comm_dup");
        try {
            check(MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN), "Comm_set_errhandler");
            find_place();
        } catch (...) {
            MPI_Comm_free(&world_);
            throw;
        }
    }
    ~MpiTransport() override {
        // While an exception unwinds other processes may not come: freeing is collective.
        if (std::uncaught_exceptions() == 0) MPI_Comm_free(&world_);
    }

    [[noreturn]] void abort(int exit_code) override {
        MPI_Abort(world_, exit_code);
        std::_Exit(exit_code);
    }

private:
    void find_place() {
        check(MPI_Comm_rank(world_, &place_.mpi_rank), "Comm_rank");
        check(MPI_Comm_size(world_, &place_.mpi_size), "Comm_size");
        MPI_Comm node = MPI_COMM_NULL;
        check(MPI_Comm_split_type(world_, MPI_COMM_TYPE_SHARED, place_.mpi_rank, MPI_INFO_NULL, &node),
              "Comm_split_type");
        const int rank_code = MPI_Comm_rank(node, &place_.node_mpi_rank);
        const int size_code = MPI_Comm_size(node, &place_.node_mpi_size);
        MPI_Comm_free(&node);
        check(rank_code, "Comm_rank");
        check(size_code, "Comm_size");

        constexpr int name_bytes = 256;
        std::array<char, name_bytes> mine{};
        const std::string name = host_name();
        std::copy_n(name.begin(), std::min<std::size_t>(name.size(), name_bytes - 1), mine.begin());
        std::vector<char> all(static_cast<std::size_t>(place_.mpi_size) * name_bytes);
        check(MPI_Allgather(mine.data(), name_bytes, MPI_CHAR, all.data(), name_bytes, MPI_CHAR, world_),
              "Allgather of host names");
        for (int other = 0; other < place_.mpi_size; ++other) {
            place_.hosts.emplace_back(all.data() + static_cast<std::ptrdiff_t>(other) * name_bytes);
        }
    }

    /// Calls piece(first, count) for consecutive pieces of at most message_bytes_.
    template <typename Piece>
    void in_pieces(std::size_t n, std::size_t element_bytes, Piece piece) const {
        const auto step = std::max<std::size_t>(1, static_cast<std::size_t>(message_bytes_) / element_bytes);
        for (std::size_t first = 0; first < n; first += step) {
            piece(first, static_cast<int>(std::min(step, n - first)));
        }
    }

    void do_broadcast(std::span<std::byte> bytes, int root) override {
        in_pieces(bytes.size(), 1, [&](std::size_t first, int count) {
            check(MPI_Bcast(bytes.data() + first, count, MPI_BYTE, root, world_), "Bcast");
        });
    }

    std::vector<std::vector<std::byte>> do_gather(std::span<const std::byte> bytes) override {
        const std::int64_t mine = std::ssize(bytes);
        std::vector<std::int64_t> sizes(is_root() ? static_cast<std::size_t>(mpi_size()) : 0);
        check(MPI_Gather(&mine, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, 0, world_), "Gather of sizes");
        if (!is_root()) {
            in_pieces(bytes.size(), 1, [&](std::size_t first, int count) {
                check(MPI_Send(bytes.data() + first, count, MPI_BYTE, 0, bytes_tag, world_), "Send of a gather");
            });
            return {};
        }
        std::vector<std::vector<std::byte>> all(sizes.size());
        all[0].assign(bytes.begin(), bytes.end());
        for (std::size_t other = 1; other < sizes.size(); ++other) {
            all[other].resize(static_cast<std::size_t>(sizes[other]));
            in_pieces(all[other].size(), 1, [&](std::size_t first, int count) {
                check(MPI_Recv(all[other].data() + first, count, MPI_BYTE, static_cast<int>(other), bytes_tag, world_,
                               MPI_STATUS_IGNORE),
                      "Recv of a gather");
            });
        }
        return all;
    }

    void do_reduce_sum(std::span<const std::int64_t> values, std::span<std::int64_t> out) override {
        reduce(values, out, MPI_INT64_T);
    }
    void do_reduce_sum(std::span<const double> values, std::span<double> out) override {
        reduce(values, out, MPI_DOUBLE);
    }
    template <typename T>
    void reduce(std::span<const T> values, std::span<T> out, MPI_Datatype type) {
        in_pieces(values.size(), sizeof(T), [&](std::size_t first, int count) {
            T* target = is_root() ? out.data() + first : nullptr;
            check(MPI_Reduce(values.data() + first, target, count, type, MPI_SUM, 0, world_), "Reduce");
        });
    }

    void do_all_sum(std::span<std::int64_t> values) override { all_reduce(values, MPI_SUM); }
    void do_all_max(std::span<std::int64_t> values) override { all_reduce(values, MPI_MAX); }
    void all_reduce(std::span<std::int64_t> values, MPI_Op operation) {
        in_pieces(values.size(), sizeof(std::int64_t), [&](std::size_t first, int count) {
            check(MPI_Allreduce(MPI_IN_PLACE, values.data() + first, count, MPI_INT64_T, operation, world_),
                  "Allreduce");
        });
    }
    void do_barrier() override { check(MPI_Barrier(world_), "Barrier"); }

    MPI_Comm world_ = MPI_COMM_NULL;
    std::int64_t message_bytes_;
};

const char* from_environment(const char* name) { return std::getenv(name); }

}  // namespace

MpiSession::MpiSession(int* argc, char*** argv) : exceptions_at_start_(std::uncaught_exceptions()) {
    check_launch(0, from_environment);
    int provided = 0;
    check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "Init_thread");
    owns_ = true;
    try {
        if (provided < MPI_THREAD_FUNNELED) {
            throw environment_error(
                "MPI offers thread level {} but hetlora needs FUNNELED ({}) - use an MPI library built with threads "
                "(this one: {})",
                provided, static_cast<int>(MPI_THREAD_FUNNELED), library_version());
        }
        int size = 0;
        check(MPI_Comm_size(MPI_COMM_WORLD, &size), "Comm_size");
        check_launch(size, from_environment);
    } catch (...) {
        MPI_Finalize();  // every process of this MPI world fails here alike, so nobody waits
        throw;
    }
}

MpiSession::MpiSession(MpiSession&& other) noexcept
    : exceptions_at_start_(other.exceptions_at_start_), owns_(other.owns_) {
    other.owns_ = false;
}

MpiSession::~MpiSession() {
    if (owns_ && std::uncaught_exceptions() <= exceptions_at_start_) MPI_Finalize();
}

std::string MpiSession::library_version() {
    std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
    int length = 0;
    if (MPI_Get_library_version(text.data(), &length) != MPI_SUCCESS) return "unknown MPI library";
    std::string version(text.data(), static_cast<std::size_t>(length));
    return version.substr(0, version.find('\n'));
}

std::unique_ptr<Transport> make_mpi_transport(const MpiSession&, std::int64_t message_bytes) {
    return std::make_unique<MpiTransport>(message_bytes);
}

}  // namespace hetlora

#include "hetlora/comm/transport.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>

namespace hetlora {

namespace {

std::int64_t byte_count(std::size_t n, std::size_t size) { return static_cast<std::int64_t>(n * size); }

template <typename T>
void check_reduction(const Transport& transport, std::span<const T> values, std::span<T> out) {
    if (transport.is_root() && values.size() != out.size()) {
        throw bug_error("reduce_sum: {} values but room for {} results on root", values.size(), out.size());
    }
}

}  // namespace

void Transport::broadcast(std::span<std::byte> bytes, int root) {
    if (root < 0 || root >= mpi_size()) throw bug_error("broadcast: root {} of {} mpi_ranks", root, mpi_size());
    do_broadcast(bytes, root);
    if (mpi_rank() != root) traffic_.down_bytes += byte_count(bytes.size(), 1);
}

std::vector<std::vector<std::byte>> Transport::gather(std::span<const std::byte> bytes) {
    auto all = do_gather(bytes);
    if (!is_root()) traffic_.up_bytes += byte_count(bytes.size(), 1);
    return all;
}

void Transport::reduce_sum(std::span<const std::int64_t> values, std::span<std::int64_t> out) {
    check_reduction(*this, values, out);
    do_reduce_sum(values, out);
    if (!is_root()) traffic_.up_bytes += byte_count(values.size(), sizeof(std::int64_t));
}

void Transport::reduce_sum(std::span<const double> values, std::span<double> out) {
    check_reduction(*this, values, out);
    do_reduce_sum(values, out);
    if (!is_root()) traffic_.up_bytes += byte_count(values.size(), sizeof(double));
}

void Transport::all_sum(std::span<std::int64_t> values) {
    do_all_sum(values);
    if (!is_root()) traffic_.control_bytes += 2 * byte_count(values.size(), sizeof(std::int64_t));
}

void Transport::all_max(std::span<std::int64_t> values) {
    do_all_max(values);
    if (!is_root()) traffic_.control_bytes += 2 * byte_count(values.size(), sizeof(std::int64_t));
}

void Transport::barrier() { do_barrier(); }

LocalTransport::LocalTransport() { place_.hosts = {host_name()}; }

void LocalTransport::abort(int exit_code) { std::_Exit(exit_code); }

std::vector<std::vector<std::byte>> LocalTransport::do_gather(std::span<const std::byte> bytes) {
    return {std::vector<std::byte>(bytes.begin(), bytes.end())};
}

void LocalTransport::do_reduce_sum(std::span<const std::int64_t> values, std::span<std::int64_t> out) {
    std::ranges::copy(values, out.begin());
}

void LocalTransport::do_reduce_sum(std::span<const double> values, std::span<double> out) {
    std::ranges::copy(values, out.begin());
}

std::string host_name() {
    std::array<char, 256> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "unknown";
    return name.data();
}

}  // namespace hetlora

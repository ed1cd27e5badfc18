// The transport over MPI, at any number of mpi_ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "mpi_main.hpp"

namespace hetlora {
namespace {

using testing_mpi::transport;

TEST(MpiTransport, knows_its_place) {
    auto& t = transport();
    EXPECT_GE(t.mpi_rank(), 0);
    EXPECT_LT(t.mpi_rank(), t.mpi_size());
    ASSERT_EQ(static_cast<int>(t.hosts().size()), t.mpi_size());
    EXPECT_EQ(t.hosts()[static_cast<std::size_t>(t.mpi_rank())], host_name());
    EXPECT_LE(t.node_mpi_size(), t.mpi_size());
    EXPECT_LT(t.node_mpi_rank(), t.node_mpi_size());
}

TEST(MpiTransport, broadcast_reaches_everybody_from_any_root) {
    auto& t = transport();
    for (int root = 0; root < t.mpi_size(); ++root) {
        std::vector<double> values(1000, t.mpi_rank() == root ? root + 0.5 : -1.0);
        t.broadcast_values(values, root);
        EXPECT_TRUE(std::ranges::all_of(values, [&](double v) { return v == root + 0.5; })) << "root " << root;
    }
}

TEST(MpiTransport, long_messages_are_cut_and_put_together_again) {
    const auto t = testing_mpi::transport_with_messages_of(24);  // 24 bytes: three doubles, nothing divides evenly
    std::vector<std::int64_t> values(100);
    if (t->is_root()) std::iota(values.begin(), values.end(), 7);
    t->broadcast_values(values);
    for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], static_cast<std::int64_t>(i) + 7);

    std::vector<std::int64_t> sums(t->is_root() ? values.size() : 0);
    t->reduce_sum(values, sums);
    for (std::size_t i = 0; i < sums.size(); ++i)
        ASSERT_EQ(sums[i], (static_cast<std::int64_t>(i) + 7) * t->mpi_size());

    const auto all = t->gather(std::as_bytes(std::span(values)));
    for (const auto& part : all) {
        ASSERT_EQ(part.size(), 800u);
        EXPECT_EQ(std::memcmp(part.data(), values.data(), part.size()), 0);
    }
}

TEST(MpiTransport, gather_takes_a_different_size_from_everybody) {
    auto& t = transport();
    const std::vector<std::byte> mine(static_cast<std::size_t>(3 * t.mpi_rank()),
                                      std::byte(t.mpi_rank()));  // root: none
    const auto all = t.gather(mine);
    if (!t.is_root()) {
        EXPECT_TRUE(all.empty());
        return;
    }
    ASSERT_EQ(static_cast<int>(all.size()), t.mpi_size());
    for (std::size_t other = 0; other < all.size(); ++other) {
        ASSERT_EQ(all[other].size(), 3 * other);
        for (const auto byte : all[other]) EXPECT_EQ(byte, std::byte(other));
    }
}

TEST(MpiTransport, sums_and_maxima) {
    auto& t = transport();
    const std::int64_t n = t.mpi_size();
    const std::vector<std::int64_t> mine{t.mpi_rank() + 1, -5, std::int64_t{1} << 40};
    std::vector<std::int64_t> sums(3);
    t.reduce_sum(mine, sums);
    if (t.is_root()) {
        EXPECT_EQ(sums, (std::vector<std::int64_t>{n * (n + 1) / 2, -5 * n, n << 40}));
    }

    std::vector<double> real_sums(1);
    t.reduce_sum(std::vector<double>{0.25}, real_sums);
    if (t.is_root()) {
        EXPECT_EQ(real_sums[0], 0.25 * static_cast<double>(n));
    }

    auto everywhere = mine;
    t.all_sum(everywhere);
    EXPECT_EQ(everywhere, (std::vector<std::int64_t>{n * (n + 1) / 2, -5 * n, n << 40}));
    everywhere = mine;
    t.all_max(everywhere);
    EXPECT_EQ(everywhere, (std::vector<std::int64_t>{n, -5, std::int64_t{1} << 40}));
    t.barrier();
}

TEST(MpiTransport, empty_messages_work) {
    auto& t = transport();
    t.broadcast({});
    const std::vector<std::int64_t> nothing;
    t.reduce_sum(nothing, {});
    t.all_max({});
    EXPECT_EQ(t.gather({}).size(), t.is_root() ? static_cast<std::size_t>(t.mpi_size()) : 0u);
}

TEST(MpiTransport, counts_every_payload_byte_once_over_all_processes) {
    const auto t = testing_mpi::transport_with_messages_of(64);
    std::vector<double> values(50);
    t->broadcast_values(values);
    std::vector<double> sums(50);
    t->reduce_sum(values, sums);
    const auto gathered = t->gather(std::as_bytes(std::span(values).first(10)));
    EXPECT_EQ(t->traffic().down_bytes, t->is_root() ? 0 : 400);
    EXPECT_EQ(t->traffic().up_bytes, t->is_root() ? 0 : 480);
    EXPECT_EQ(t->bytes_sent(), t->is_root() ? 0 : 880);
}

}  // namespace
}  // namespace hetlora

#include "hetlora/tensor/arena.hpp"

#include <gtest/gtest.h>

namespace hetlora {
namespace {

TEST(Arena, tensors_start_on_64_bytes_and_do_not_overlap) {
    Arena arena(at::kFloat, at::kCPU);
    for (int round = 0; round < 2; ++round) {
        arena.reset();
        at::Tensor first = arena.take({3, 5}).fill_(1);
        at::Tensor second = arena.take({7}).fill_(2);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(second.data_ptr()) % 64, 0U);
        EXPECT_EQ(first.sum().item<double>(), 15);
        EXPECT_EQ(second.sum().item<double>(), 14);
    }
}

TEST(Arena, a_second_step_of_the_same_size_reuses_the_block) {
    Arena arena(at::kDouble, at::kCPU);
    (void)arena.take({100});
    arena.reset();
    const void* first = arena.take({100}).data_ptr();
    const auto capacity = arena.capacity_bytes();
    arena.reset();
    EXPECT_EQ(arena.take({100}).data_ptr(), first);
    EXPECT_EQ(arena.capacity_bytes(), capacity);
}

TEST(Arena, grows_by_blocks_and_gives_the_same_places_again) {
    Arena arena(at::kByte, at::kCPU);
    const std::int64_t large = std::int64_t{20} << 20;  // two do not fit into one block
    const auto step = [&] {
        arena.reset();
        std::vector<void*> places;
        for (int i = 0; i < 3; ++i) {
            const auto mark = arena.mark();
            places.push_back(arena.take({large}).mutable_data_ptr());
            places.push_back(arena.take({large}, at::kByte).mutable_data_ptr());
            arena.release(mark);
        }
        return places;
    };
    const std::vector<void*> first = step();
    EXPECT_NE(first[0], first[1]);
    EXPECT_EQ(first[2], first[0]) << "what is released is taken again, in the first step, too";
    const auto capacity = arena.capacity_bytes();
    EXPECT_EQ(step(), first);
    EXPECT_EQ(arena.capacity_bytes(), capacity);
    EXPECT_LE(arena.peak_bytes(), capacity);
}

TEST(Arena, release_goes_back_to_the_mark) {
    Arena arena(at::kFloat, at::kCPU);
    (void)arena.take({64});
    arena.reset();
    const auto mark = arena.mark();
    const void* temporary = arena.take({16}).data_ptr();
    arena.release(mark);
    EXPECT_EQ(arena.take({16}).data_ptr(), temporary);
}

}  // namespace
}  // namespace hetlora

// What the mpi_ranks found, on root in an order that does not depend on who found it. Internal to src/app.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "hetlora/comm/transport.hpp"

namespace hetlora {

/// The entries (plain data) of all mpi_ranks on root, ascending by `key`; elsewhere nothing. Collective.
template <typename Entry, typename Key>
std::vector<Entry> gather_in_order(Transport& transport, const std::vector<Entry>& mine, Key key) {
    std::vector<Entry> all;
    for (const auto& bytes : transport.gather(std::as_bytes(std::span(mine)))) {
        const std::size_t count = bytes.size() / sizeof(Entry);
        all.resize(all.size() + count);
        if (count > 0) std::memcpy(all.data() + all.size() - count, bytes.data(), count * sizeof(Entry));
    }
    std::ranges::sort(all, {}, key);
    return all;
}

}  // namespace hetlora

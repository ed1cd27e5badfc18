// How a Corpus walks through its file: in blocks, nothing kept. Internal to the corpus*.cpp files.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/data/corpus.hpp"

namespace hetlora {

inline constexpr std::int64_t index_block = 1 << 16;  // sequences whose index entries are in memory at once
inline constexpr std::int64_t mask_block_bytes = 4
                                                 << 20;   // masks in memory at once (one longer sequence is read whole)
inline constexpr std::int64_t mask_gap_bytes = 16 << 10;  // a gap up to this size is read over instead of around

template <typename Visit>
void Corpus::for_each_sequence(Visit visit) const {
    for (std::int64_t begin = 0; begin < file_.n_sequences(); begin += index_block) {
        const IndexRange range{begin, std::min(begin + index_block, file_.n_sequences())};
        const auto infos = file_.sequences(range);
        for (std::size_t i = 0; i < infos.size(); ++i)
            visit(static_cast<std::int32_t>(begin + static_cast<std::int64_t>(i)), infos[i]);
    }
}

template <typename Visit>
void Corpus::for_each_evaluation_sequence(Part part, Visit visit) const {
    for_each_sequence([&](std::int32_t sequence, const SequenceInfo& info) {
        if (info.part != part || !file_.held_out(info.client)) return;
        visit(sequence, info);
    });
}

template <typename Visit>
void Corpus::for_each_mask(const std::vector<IndexedSequence>& sequences, Visit visit) const {
    for (std::size_t first = 0; first < sequences.size();) {
        const std::int64_t begin = sequences[first].info.offset;
        std::int64_t end = begin + sequences[first].info.length;
        std::size_t last = first + 1;
        for (; last < sequences.size(); ++last) {
            const SequenceInfo& next = sequences[last].info;
            if (next.offset - end > mask_gap_bytes || next.offset + next.length - begin > mask_block_bytes) break;
            end = next.offset + next.length;
        }
        const auto block = file_.read_mask({begin, end});
        for (; first < last; ++first) {
            const SequenceInfo& info = sequences[first].info;
            visit(sequences[first],
                  std::span<const std::uint8_t>(block).subspan(static_cast<std::size_t>(info.offset - begin),
                                                               static_cast<std::size_t>(info.length)));
        }
    }
}

}  // namespace hetlora

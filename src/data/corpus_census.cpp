// What a partition gave whom: the table of classes by client, and a digest of the whole.
#include <algorithm>
#include <array>

#include "hetlora/base/sha256.hpp"
#include "hetlora/data/corpus.hpp"

namespace hetlora {
namespace {

constexpr std::int64_t census_block = 1 << 16;  // sequences whose index entries are in memory at once

/// Calls visit(sequence, info) for every sequence of the file.
template <typename Visit>
void visit_index(const CorpusFile& file, Visit visit) {
    for (std::int64_t begin = 0; begin < file.n_sequences(); begin += census_block) {
        const auto infos = file.sequences({begin, std::min(begin + census_block, file.n_sequences())});
        for (std::size_t i = 0; i < infos.size(); ++i) visit(static_cast<std::size_t>(begin) + i, infos[i]);
    }
}

/// A number as eight bytes, the lowest first, on every machine.
std::array<std::byte, 8> little_endian(std::int64_t value) {
    std::array<std::byte, 8> bytes{};
    auto rest = static_cast<std::uint64_t>(value);
    for (std::byte& byte : bytes) {
        byte = static_cast<std::byte>(rest & 0xFFU);
        rest >>= 8U;
    }
    return bytes;
}

}  // namespace

bool Corpus::by_group() const noexcept {
    if (options_.partition == PartitionKind::dirichlet) return options_.dirichlet_by_group;
    return file_.label_names().empty() && !file_.group_names().empty();
}

ClassCounts Corpus::class_counts(std::int64_t most_cells) const {
    ClassCounts result{
        .by_group = by_group(), .names = by_group() ? file_.group_names() : file_.label_names(), .counts = {}};
    if (result.names.empty()) return result;
    const auto n_named = result.names.size();
    const std::size_t width = n_named + 1;  // the last column is of those without a class
    if (n_clients() > most_cells / static_cast<std::int64_t>(width)) return result;
    std::vector<std::int32_t> counts(static_cast<std::size_t>(n_clients()) * width, 0);
    const auto owner = owners();
    bool some_without = false;
    visit_index(file_, [&](std::size_t sequence, const SequenceInfo& info) {
        const std::int32_t client = owner.empty() ? info.client : owner[sequence];
        if (info.part != Part::train || client < 0) return;
        const std::int32_t named = result.by_group ? info.group : info.label;
        some_without = some_without || named < 0;
        ++counts[static_cast<std::size_t>(client) * width + (named < 0 ? n_named : static_cast<std::size_t>(named))];
    });
    if (some_without) {
        result.names.emplace_back("(none)");
        result.counts = std::move(counts);
        return result;
    }
    for (std::size_t client = 0; client < static_cast<std::size_t>(n_clients()); ++client) {
        const auto row = std::span(counts).subspan(client * width, n_named);
        result.counts.insert(result.counts.end(), row.begin(), row.end());
    }
    return result;
}

std::string Corpus::partition_sha256() const {
    Sha256 digest;
    digest.update(little_endian(n_clients()));
    for (const Part part : {Part::train, Part::valid, Part::test}) {
        const auto owner = owners(part);
        visit_index(file_, [&](std::size_t sequence, const SequenceInfo& info) {
            if (info.part != part || file_.held_out(info.client)) return;
            const std::int64_t client = owner.empty() ? info.client : owner[sequence];
            digest.update(little_endian(static_cast<std::int64_t>(sequence)));
            digest.update(little_endian(client));
        });
    }
    return digest.hex();
}

}  // namespace hetlora

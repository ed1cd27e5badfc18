// Factors that clients keep for themselves (shared_factors = a): where their B lies between participations.
//
// No mpi_rank owns a client, because packs move: whoever trains a client next reads what was stored last. A version is
// never changed once it is written, so that a resumed run finds what its checkpoint names.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hetlora {

class PrivateFactors {
public:
    virtual ~PrivateFactors() = default;
    /// A client's factors as of the end of `round`. @throws Error (input) if they are missing or damaged
    [[nodiscard]] virtual std::vector<double> load(std::int64_t client, std::int64_t round) = 0;
    /// @throws Error (environment) if the disk refuses
    virtual void store(std::int64_t client, std::int64_t round, std::span<const double> values) = 0;
};

}  // namespace hetlora

// The factors that clients keep for themselves, as files of the run's folder:
//
//     RUN/private/client_000012/round_000003.safetensors       B of client 12 as of the end of round 3
//
// Written whole or not at all and never changed, by whichever MPI rank trained the client (the folder is shared). What
// a kept checkpoint may need stays: of every client the newest version that is not newer than the oldest checkpoint,
// and all later ones.
#pragma once

#include <filesystem>
#include <map>

#include "hetlora/fed/plan.hpp"
#include "hetlora/fed/private_factors.hpp"

namespace hetlora {

class PrivateFiles : public PrivateFactors {
public:
    /// @param fp32 how values are stored
    PrivateFiles(std::filesystem::path folder, bool fp32) : folder_(std::move(folder)), fp32_(fp32) {}
    [[nodiscard]] std::vector<double> load(std::int64_t client, std::int64_t round) override;
    void store(std::int64_t client, std::int64_t round, std::span<const double> values) override;

    /// Removes versions of these clients that no checkpoint from `oldest_checkpoint` on can name. Call on root.
    void forget_before(const RoundPlan& plan, std::int64_t oldest_checkpoint) const;

private:
    std::filesystem::path folder_;
    bool fp32_;
};

/// In memory, for measurements that leave no files.
class PrivateMemory : public PrivateFactors {
public:
    [[nodiscard]] std::vector<double> load(std::int64_t client, std::int64_t) override { return values_.at(client); }
    void store(std::int64_t client, std::int64_t, std::span<const double> values) override {
        values_[client].assign(values.begin(), values.end());
    }

private:
    std::map<std::int64_t, std::vector<double>> values_;
};

}  // namespace hetlora

// The header of a run.h5 that is made anew: see hetlora/app/repair.hpp.
#include <algorithm>
#include <cmath>
#include <optional>

#include "hetlora/app/build_info.hpp"
#include "hetlora/app/experiment.hpp"
#include "hetlora/app/repair.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/load.hpp"
#include "hetlora/store/checkpoint.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/progress.hpp"

namespace hetlora {
namespace {

/// What the other files of the folder say about the run.
struct OtherFiles {
    std::optional<Checkpoint> checkpoint;
    std::string config;  ///< the resolved config's text
    std::optional<Settings> settings;
    std::string run_id;
    std::string base_sha256;
    std::string data_sha256;
};

/// The value of a comment that config.ini begins with: "# data sha256 0123...".
std::string comment_of(const std::string& config, const std::string& name) {
    for (const std::string& line : split(config, '\n')) {
        if (!line.starts_with("#")) break;
        if (const std::string start = "# " + name + " "; line.starts_with(start)) return line.substr(start.size());
    }
    return "";
}

OtherFiles look_at_other_files(const RunFolder& folder) {
    OtherFiles found;
    try {
        found.checkpoint = newest_checkpoint(folder.checkpoints()).checkpoint;
    } catch (const Error&) {  // of another version
    }
    try {
        found.config = read_text_file(folder.config_ini());
    } catch (const Error&) {  // missing
    }
    found.run_id = comment_of(found.config, "identity");
    found.base_sha256 = comment_of(found.config, "base sha256");
    found.data_sha256 = comment_of(found.config, "data sha256");
    if (found.checkpoint) {
        const auto& texts = found.checkpoint->texts;
        const auto text = [&](const char* name, std::string& into) {
            if (const auto at = texts.find(name); at != texts.end() && !at->second.empty()) into = at->second;
        };
        text("config", found.config);
        text("base_sha256", found.base_sha256);
        text("data_sha256", found.data_sha256);
        found.run_id = found.checkpoint->run_id;
    }
    try {
        if (found.run_id.empty()) found.run_id = read_status(folder.status()).run_id;
    } catch (const Error&) {  // missing
    }
    try {
        if (!found.config.empty()) found.settings = load_settings_text(found.config, "the run's config");
    } catch (const Error&) {  // of another version of hetlora
    }
    return found;
}

/// The clients of the data file, if it is still the one that the run was made with.
std::optional<std::vector<ClientRow>> clients_of_settings(const OtherFiles& other) {
    try {
        if (!other.settings || other.data_sha256.empty()) return std::nullopt;
        if (CorpusFile(other.settings->data.path).sha256() != other.data_sha256) return std::nullopt;
        return clients_of_data(*other.settings);
    } catch (const std::exception&) {
        return std::nullopt;
    }
}

/// As many clients as the rounds or the checkpoint tell of; their lora_rank is the first one that they received.
std::vector<ClientRow> clients_of_rounds(const OtherFiles& other, const CommittedRounds& committed) {
    std::size_t many = 0;
    if (other.checkpoint) {
        const auto ranks = other.checkpoint->integers.find("lora_ranks");
        if (ranks != other.checkpoint->integers.end()) many = ranks->second.size();
    }
    for (const RoundRecord& record : committed.records) {
        for (const ParticipationRow& row : record.participation) {
            many = std::max(many, static_cast<std::size_t>(row.client) + 1);
        }
    }
    std::vector<ClientRow> clients(many);
    for (auto record = committed.records.rbegin(); record != committed.records.rend(); ++record) {
        for (const ParticipationRow& row : record->participation) {
            clients[static_cast<std::size_t>(row.client)].initial_lora_rank = row.lora_rank_before;
        }
    }
    return clients;
}

void find_clients(RebuiltHeader& rebuilt, const OtherFiles& other, const SalvagedLog& salvaged,
                  const CommittedRounds& committed, bool complete) {
    std::vector<ClientRow>& clients = rebuilt.header.clients;
    if (salvaged.clients) {
        clients = *salvaged.clients;
        const auto measured = [](const ClientRow& row) {
            return std::isfinite(row.eval_loss_base) || std::isfinite(row.eval_loss_final);
        };
        if (std::ranges::none_of(clients, measured)) return;
        for (const ClientRow& row : clients) {
            rebuilt.eval_loss_base.push_back(row.eval_loss_base);
            rebuilt.eval_loss_final.push_back(row.eval_loss_final);
        }
        return;
    }
    if (auto found = clients_of_settings(other)) {
        clients = std::move(*found);
    } else {
        clients = clients_of_rounds(other, committed);
        rebuilt.lost.emplace_back(
            "names and sizes of the clients (the data file of the run is not where its config says, or is another "
            "one), "
            "and lora_ranks of those that never took part: empty and 0 in /clients");
    }
    const bool measured = !other.settings || other.settings->evaluation.clients == EvaluationClients::final;
    if (complete && measured) {
        rebuilt.lost.emplace_back(other.settings ? "final losses of the clients: NaN in /clients"
                                                 : "final losses of the clients, if there were any: NaN in /clients");
    }
}

}  // namespace

RebuiltHeader rebuild_header(const RunFolder& folder, const SalvagedLog& salvaged, const CommittedRounds& committed) {
    const OtherFiles other = look_at_other_files(folder);
    RebuiltHeader rebuilt;
    RunLogHeader& header = rebuilt.header;
    header.run_id = salvaged.run_id.value_or(other.run_id);
    header.creator_version = salvaged.creator_version.value_or(other.checkpoint ? other.checkpoint->creator_version
                                                                                : std::string(build_info::version));
    header.created_utc = salvaged.created_utc.value_or("");
    // A round knows its own number of slots, whatever else is damaged.
    header.rank_max = std::ssize(committed.records.front().slots.energy);
    header.extra_metrics = committed.extra_metrics;
    for (ExtraMetric& metric : header.extra_metrics) {
        if (metric.long_name.empty()) metric.long_name = "eval_" + metric.name;
    }
    if (header.run_id.empty()) rebuilt.lost.emplace_back("run_id");
    if (header.created_utc.empty()) rebuilt.lost.emplace_back("created_utc: it is the time of the repair now");
    if (!committed.extra_metrics.empty() && !salvaged.extra_metrics) {
        rebuilt.lost.emplace_back("units and long names of the further metrics");
    }
    if (salvaged.provenance && !salvaged.provenance->texts.empty()) {
        header.provenance = *salvaged.provenance;
    } else {
        std::string kept;
        const auto take = [&](const char* name, const std::string& value) {
            if (value.empty()) return;
            header.provenance.texts[name] = value;
            kept += (kept.empty() ? "" : ", ") + std::string(name);
        };
        take("config", other.config);
        take("base_sha256", other.base_sha256);
        take("data_sha256", other.data_sha256);
        rebuilt.lost.push_back("provenance: " + (kept.empty() ? "all of it" : "all but " + kept));
    }
    find_clients(rebuilt, other, salvaged, committed, std::filesystem::exists(folder.complete()));
    return rebuilt;
}

}  // namespace hetlora

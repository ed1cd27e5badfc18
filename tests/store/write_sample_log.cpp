// write_sample_log FOLDER ROUNDS [layers] [plain] [slowly]
// Makes FOLDER a run folder (run.h5, progress.jsonl, status.json, trace.h5, adapter/) with made-up values for
// tests/python/test_run_log.py. After each round it prints the number of committed rows; ROUNDS = 0 goes on until it is
// killed. With the word "layers" every second round has /layers, with "plain" there is no further metric,
// with "slowly" some milliseconds lie between the rounds.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <thread>

#include "hetlora/store/progress.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/store/run_log.hpp"
#include "hetlora/store/trace_file.hpp"
#include "run_log_sample.hpp"

namespace hetlora {
namespace {

AdapterLayout sample_layout() {
    return {.matrices = {{"model.layers.0.self_attn.q_proj", 0, "q_proj", 6, 4},
                         {"model.layers.0.self_attn.v_proj", 0, "v_proj", 2, 4}}};
}

/// Values 0, 1, 2, ... of an adapter of this lora_rank.
std::vector<double> numbered(const AdapterLayout& layout, std::int64_t lora_rank) {
    std::vector<double> values(static_cast<std::size_t>(layout.parameters(lora_rank)));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
    return values;
}

void trace_round(TraceWriter& trace, const AdapterLayout& layout, const RoundRecord& record) {
    for (const ParticipationRow& row : record.participation) {
        const std::vector<double> received = numbered(layout, row.lora_rank_before);
        const std::vector<double> sent = numbered(layout, row.lora_rank_after);
        const std::vector<TraceStep> steps{{3.5, 20, {{4, 0}, {4, 1}}}, {3.25, 10, {{5, 0}}}};
        trace.append_event({.round = row.round,
                            .client = row.client,
                            .lora_rank_before = row.lora_rank_before,
                            .lora_rank_after = row.lora_rank_after,
                            .dropped = row.dropped,
                            .weight = row.weight,
                            .learning_rate = 0.01,
                            .received = received,
                            .sent = sent,
                            .steps = steps});
    }
    trace.append_global(record.round.round, numbered(layout, 4));
}

struct SampleOptions {
    std::int64_t rounds = 0;
    bool layers = false;
    bool plain = false;
    bool slowly = false;
};

void write_sample(const std::filesystem::path& path, const SampleOptions& options) {
    const std::int64_t rounds = options.rounds;
    const RunFolder folder = RunFolder::create(path);
    RunLogHeader header = test::sample_header();
    if (options.layers) header.layers = test::sample_layer_names();
    if (options.plain) header.extra_metrics.clear();
    const AdapterLayout layout = sample_layout();
    RunLog log = RunLog::create(folder.run_log(), header);
    ProgressFile progress = ProgressFile::create(folder.progress(), header.extra_metrics);
    TraceWriter trace = TraceWriter::create(folder.trace(), header.run_id, layout, 4);
    RunStatus status = status_of_this_process();
    status.run_id = header.run_id;
    status.rounds = rounds;
    for (std::int64_t round = 0; rounds == 0 || round <= rounds; ++round) {
        RoundRecord record = test::sample_round(round);
        if (options.layers && round > 0 && round % 2 == 0) record.layers = test::sample_layers(round);
        if (options.plain) record.round.extra_metrics.clear();
        trace_round(trace, layout, record);
        test::append(log, record);
        progress.append(record);
        status.round = round;
        status.state = round == rounds ? RunState::done : RunState::running;
        write_status(folder.status(), status);
        std::printf("%lld\n", static_cast<long long>(log.committed_rounds()));
        std::fflush(stdout);
        if (options.slowly) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    log.close();
    trace.close();
    folder.write_adapter(layout, numbered(layout, 4),
                         {.lora_rank = 4, .scale = 2.0, .base_model = "none", .metadata = {{"format", "pt"}}});
    folder.mark_complete("sample");
}

}  // namespace
}  // namespace hetlora

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fputs("usage: write_sample_log FOLDER ROUNDS [layers] [plain] [slowly] (ROUNDS = 0: until killed)\n",
                   stderr);
        return 2;
    }
    try {
        hetlora::SampleOptions options{.rounds = std::atoll(argv[2])};
        for (int i = 3; i < argc; ++i) {
            options.layers |= std::string_view(argv[i]) == "layers";
            options.slowly |= std::string_view(argv[i]) == "slowly";
            options.plain |= std::string_view(argv[i]) == "plain";
        }
        hetlora::write_sample(argv[1], options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 70;
    }
    return 0;
}

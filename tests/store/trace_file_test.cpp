// trace.h5: layout and values as documented, cut when a run goes on from an earlier round.
#include "hetlora/store/trace_file.hpp"

#include <gtest/gtest.h>

#include "hetlora/base/error.hpp"
#include "hetlora/store/hdf5_handle.hpp"
#include "make_corpus.hpp"
#include "two_matrices.hpp"

namespace hetlora {
namespace {

using test::TemporaryFolder;
using test::two_matrices;

std::vector<double> adapter(std::int64_t lora_rank, double value) {
    return std::vector<double>(static_cast<std::size_t>(two_matrices().parameters(lora_rank)), value);
}

/// Round t: client 0 at lora_rank 1 with two steps, client 1 from lora_rank 3 to 2 with one.
void write_round(TraceWriter& trace, std::int64_t round) {
    const auto t = static_cast<double>(round);
    const std::vector<double> small = adapter(1, t + 0.1);
    const std::vector<double> large = adapter(3, t + 0.2);
    const std::vector<double> pruned = adapter(2, t + 0.3);
    const std::vector<std::int64_t> chosen{0, 2};
    const std::vector<TraceStep> two{{3.0 + t, 7, {{10, 0}, {10, 2}}}, {2.0 + t, 5, {{11, 1}}}};
    const std::vector<TraceStep> one{{4.0 + t, 9, {{20, 0}, {21, 0}, {22, 0}}}};
    trace.append_event({.round = round,
                        .client = 0,
                        .lora_rank = 1,
                        .lora_rank_before = 1,
                        .lora_rank_after = 1,
                        .weight = 0.25,
                        .learning_rate = 0.01,
                        .received = small,
                        .sent = small,
                        .steps = two});
    trace.append_event({.round = round,
                        .client = 1,
                        .lora_rank = 2,
                        .lora_rank_before = 3,
                        .lora_rank_after = 2,
                        .dropped = true,
                        .weight = 0.75,
                        .learning_rate = 0.01,
                        .received = large,
                        .sent = pruned,
                        .slots = chosen,
                        .steps = one});
    trace.append_global(round, adapter(3, t));
}

void write_trace(const std::filesystem::path& path, std::int64_t rounds) {
    TraceWriter trace = TraceWriter::create(path, "run 1", two_matrices(), 3);
    trace.append_global(0, adapter(3, 0.0));
    for (std::int64_t round = 1; round <= rounds; ++round) write_round(trace, round);
    trace.close();
}

using Integers = std::vector<std::int64_t>;

TEST(TraceFile, has_the_documented_layout_and_values) {
    const TemporaryFolder folder;
    write_trace(folder / "trace.h5", 2);

    const hdf5::File file = hdf5::File::open_read(folder / "trace.h5");

    EXPECT_EQ(file.read_text("schema_name"), "hetlora-trace");
    EXPECT_EQ(file.read_int("schema_version"), 1);
    EXPECT_EQ(file.read_text("run_id"), "run 1");
    const auto integers = [&file](const char* name) { return file.open_dataset(name).read_all<std::int64_t>(); };
    const auto numbers = [&file](const char* name) { return file.open_dataset(name).read_all<double>(); };
    const std::int64_t slot = two_matrices().parameters_per_slot();
    EXPECT_EQ(file.open_dataset("matrices/name").read_strings()[1], "layers.0.v_proj");
    EXPECT_EQ(integers("matrices/d_out"), (Integers{3, 1}));
    EXPECT_EQ(integers("matrices/d_in"), (Integers{2, 4}));
    EXPECT_EQ(integers("events/round"), (Integers{1, 1, 2, 2}));
    EXPECT_EQ(integers("events/client"), (Integers{0, 1, 0, 1}));
    EXPECT_EQ(integers("events/lora_rank_before"), (Integers{1, 3, 1, 3}));
    EXPECT_EQ(integers("events/lora_rank_after"), (Integers{1, 2, 1, 2}));
    EXPECT_EQ(integers("events/n_steps"), (Integers{2, 1, 2, 1}));
    EXPECT_EQ(integers("events/dropped"), (Integers{0, 1, 0, 1}));
    EXPECT_EQ(numbers("events/weight"), (std::vector<double>{0.25, 0.75, 0.25, 0.75}));
    EXPECT_EQ(numbers("events/loss_first"), (std::vector<double>{4, 5, 5, 6}));
    EXPECT_EQ(numbers("events/loss_last"), (std::vector<double>{3, 5, 4, 6}));
    EXPECT_EQ(integers("events/received_offset"), (Integers{0, slot, 4 * slot, 5 * slot, 8 * slot}));
    EXPECT_EQ(integers("events/sent_offset"), (Integers{0, slot, 3 * slot, 4 * slot, 6 * slot}));
    EXPECT_EQ(integers("events/lora_rank"), (Integers{1, 2, 1, 2}));
    EXPECT_EQ(integers("events/slots_offset"), (Integers{0, 0, 2, 2, 4}));
    EXPECT_EQ(integers("slots/slot"), (Integers{0, 2, 0, 2}));
    EXPECT_EQ(numbers("adapters/received")[static_cast<std::size_t>(slot)], 1.2);
    EXPECT_EQ(numbers("adapters/sent").back(), 2.3);
    EXPECT_EQ(integers("steps/event"), (Integers{0, 0, 1, 2, 2, 3}));
    EXPECT_EQ(integers("steps/step"), (Integers{0, 1, 0, 0, 1, 0}));
    EXPECT_EQ(integers("steps/n_loss_tokens"), (Integers{7, 5, 9, 7, 5, 9}));
    EXPECT_EQ(integers("steps/window_offset"), (Integers{0, 2, 3, 6, 8, 9, 12}));
    EXPECT_EQ(integers("windows/sequence"), (Integers{10, 10, 11, 20, 21, 22, 10, 10, 11, 20, 21, 22}));
    EXPECT_EQ(integers("windows/window"), (Integers{0, 2, 1, 0, 0, 0, 0, 2, 1, 0, 0, 0}));
    EXPECT_EQ(integers("globals/round"), (Integers{0, 1, 2}));
    EXPECT_EQ(integers("globals/offset"), (Integers{0, 3 * slot, 6 * slot, 9 * slot}));
    EXPECT_EQ(numbers("globals/values").back(), 2.0);
}

TEST(TraceFile, going_on_from_an_earlier_round_gives_the_same_trace) {
    const TemporaryFolder folder;
    write_trace(folder / "whole.h5", 3);
    write_trace(folder / "resumed.h5", 2);

    TraceWriter trace = TraceWriter::reopen(folder / "resumed.h5", two_matrices(), 3, 1);
    write_round(trace, 2);
    write_round(trace, 3);
    trace.close();

    const hdf5::File whole = hdf5::File::open_read(folder / "whole.h5");
    const hdf5::File resumed = hdf5::File::open_read(folder / "resumed.h5");
    for (const char* group : {"events", "adapters", "slots", "steps", "windows", "globals"}) {
        for (const std::string& name : whole.open_group(group).names()) {
            const std::string path = std::string(group) + "/" + name;
            EXPECT_EQ(whole.open_dataset(path).read_all<double>(), resumed.open_dataset(path).read_all<double>())
                << path;
        }
    }
}

/// As write_trace(), of a classification run whose heads have three values.
void write_heads(TraceWriter& trace, std::int64_t first, std::int64_t last) {
    const std::vector<double> small = adapter(1, 0.1);
    for (std::int64_t round = first; round <= last; ++round) {
        const auto t = static_cast<double>(round);
        const std::vector<double> sent{t, t + 0.5, -t};
        for (const double samples : {5.0, 7.0}) {
            trace.append_event({.round = round,
                                .lora_rank = 1,
                                .lora_rank_before = 1,
                                .lora_rank_after = 1,
                                .received = small,
                                .sent = small,
                                .head = sent,
                                .n_samples = samples});
        }
        trace.append_global(round, adapter(3, t), sent);
    }
}

TEST(TraceFile, heads_stand_beside_the_adapters_and_are_cut_with_them) {
    const TemporaryFolder folder;
    const std::vector<double> start{0.25, 0.5, 0.75};
    for (const char* name : {"whole.h5", "resumed.h5"}) {
        TraceWriter trace = TraceWriter::create(folder / name, "run 1", two_matrices(), 3);
        trace.append_global(0, adapter(3, 0.0), start);
        write_heads(trace, 1, 2);
        EXPECT_THROW(trace.append_global(3, adapter(3, 0.0)), Error) << "without its head";
        trace.close();
    }
    TraceWriter trace = TraceWriter::reopen(folder / "resumed.h5", two_matrices(), 3, 1);
    write_heads(trace, 2, 2);
    trace.close();

    const hdf5::File whole = hdf5::File::open_read(folder / "whole.h5");
    const hdf5::File resumed = hdf5::File::open_read(folder / "resumed.h5");
    const auto numbers = [](const hdf5::File& file, const std::string& path) {
        return file.open_dataset(path).read_all<double>();
    };
    EXPECT_EQ(numbers(whole, "heads/global"), (std::vector<double>{0.25, 0.5, 0.75, 1.0, 1.5, -1.0, 2.0, 2.5, -2.0}));
    EXPECT_EQ(numbers(whole, "heads/n_samples"), (std::vector<double>{5.0, 7.0, 5.0, 7.0}));
    EXPECT_EQ(numbers(whole, "heads/sent_offset"), (std::vector<double>{0.0, 3.0, 6.0, 9.0, 12.0}));
    for (const std::string& name : whole.open_group("heads").names())
        EXPECT_EQ(numbers(whole, "heads/" + name), numbers(resumed, "heads/" + name)) << name;
}

TEST(TraceFile, round_zero_can_be_gone_on_from) {
    const TemporaryFolder folder;
    write_trace(folder / "a.h5", 2);

    TraceWriter trace = TraceWriter::reopen(folder / "a.h5", two_matrices(), 3, 0);
    trace.close();

    const hdf5::File file = hdf5::File::open_read(folder / "a.h5");
    EXPECT_EQ(file.open_dataset("events/round").rows(), 0);
    EXPECT_EQ(file.open_dataset("events/sent_offset").rows(), 1);
    EXPECT_EQ(file.open_dataset("windows/window").rows(), 0);
    EXPECT_EQ(file.open_dataset("events/slots_offset").rows(), 1);
    EXPECT_EQ(file.open_dataset("slots/slot").rows(), 0);
    EXPECT_EQ(file.open_dataset("globals/round").rows(), 1);
}

TEST(TraceFile, what_does_not_fit_is_refused) {
    const TemporaryFolder folder;
    write_trace(folder / "a.h5", 1);
    AdapterLayout other = two_matrices();
    other.matrices[0].d_in = 5;
    const std::vector<double> values = adapter(1, 0);

    EXPECT_THROW((void)TraceWriter::create(folder / "a.h5", "x", two_matrices(), 3), Error);
    EXPECT_THROW((void)TraceWriter::reopen(folder / "a.h5", other, 3, 1), Error);
    EXPECT_THROW((void)TraceWriter::reopen(folder / "a.h5", two_matrices(), 3, 2), Error);
    hdf5::File::create(folder / "other.h5").close();
    EXPECT_THROW((void)TraceWriter::reopen(folder / "other.h5", two_matrices(), 3, 0), Error);
    TraceWriter trace = TraceWriter::create(folder / "b.h5", "x", two_matrices(), 3);
    EXPECT_THROW(trace.append_global(1, adapter(3, 0)), Error);
    EXPECT_THROW(trace.append_global(0, adapter(2, 0)), Error);
    EXPECT_THROW(trace.append_event(
                     {.round = 1, .lora_rank_before = 1, .lora_rank_after = 1, .received = values, .sent = values}),
                 Error)
        << "the initial global adapter comes first";
    trace.append_global(0, adapter(3, 0));
    EXPECT_THROW(trace.append_event(
                     {.round = 1, .lora_rank_before = 1, .lora_rank_after = 2, .received = values, .sent = values}),
                 Error);
    trace.close();
    EXPECT_THROW(trace.append_global(1, adapter(3, 0)), Error);
}

}  // namespace
}  // namespace hetlora

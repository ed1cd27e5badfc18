#include "hetlora/app/samples.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/model/generate.hpp"

namespace hetlora {
namespace {

struct SamplePrompt {
    std::vector<std::int32_t> prompt;
    std::vector<std::int32_t> real;
};

/// The text on one line, the last `most` bytes of it (cut at a character).
std::string one_line(std::string text, std::size_t most) {
    std::ranges::replace(text, '\n', ' ');
    if (text.size() <= most) return text;
    std::size_t begin = text.size() - most;
    while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U) ++begin;
    return "..." + text.substr(begin);
}

/// The last own turn of some evaluation conversations, each sequence once.
std::vector<SamplePrompt> choose_prompts(const Experiment& experiment) {
    const CorpusFile& file = experiment.corpus->file();
    const Settings& settings = experiment.settings;
    std::vector<std::int32_t> sequences;
    for (const WindowRef& window : experiment.evaluation_windows) {
        if (sequences.empty() || sequences.back() != window.sequence) sequences.push_back(window.sequence);
    }
    std::ranges::sort(sequences, {},
                      [&](std::int32_t s) { return hash_seed(settings.experiment.seed_data, Purpose::generation, s); });
    std::vector<SamplePrompt> prompts;
    const std::int64_t room = settings.data.sequence_length;
    for (const std::int32_t sequence : sequences) {
        if (std::ssize(prompts) == settings.evaluation.samples) break;
        const SequenceInfo info = file.sequence(sequence);
        if (info.prompt_length < 16 || info.prompt_length >= info.length) continue;
        const SequenceTokens tokens = file.read(sequence);
        const std::int64_t begin = std::max<std::int64_t>(0, info.prompt_length - room);
        SamplePrompt prompt;
        prompt.prompt.assign(tokens.ids.begin() + begin, tokens.ids.begin() + info.prompt_length);
        for (std::size_t i = static_cast<std::size_t>(info.prompt_length); i < tokens.ids.size() && tokens.mask[i] == 1;
             ++i) {
            prompt.real.push_back(tokens.ids[i]);
        }
        prompts.push_back(std::move(prompt));
    }
    return prompts;
}

}  // namespace

std::vector<Sample> make_samples(Experiment& experiment, std::span<const double> global) {
    // Where clients keep a factor for themselves, the global adapter alone says nothing.
    if (experiment.settings.evaluation.samples == 0 || experiment.strategy.is_personal()) return {};
    const CorpusFile& file = experiment.corpus->file();
    const auto chosen = choose_prompts(experiment);
    std::vector<std::vector<std::int32_t>> prompts;
    for (const auto& one : chosen) prompts.push_back(one.prompt);
    GenerationOptions options{.max_new_tokens = experiment.settings.evaluation.sample_tokens,
                              .temperature = 0.0,
                              .seed = experiment.settings.experiment.seed_data,
                              .stop_ids = experiment.engine->weights().config.eos_ids};
    if (file.attributes().eos_id >= 0) options.stop_ids.push_back(file.attributes().eos_id);
    const std::int64_t rank_max = experiment.settings.lora.rank_max;
    AdapterGroup adapter(experiment.layout, 1, lora_width(rank_max), /*with_gradient=*/false,
                         experiment.engine->weights().options());
    adapter.set(0, global, rank_max);
    // A method that changes the base leaves no untouched one to ask.
    const bool base_untouched = !experiment.strategy.updates_base() && !experiment.strategy.trains_base();
    std::vector<std::vector<std::int32_t>> base;
    if (base_untouched) base = generate(*experiment.engine, nullptr, 0.0, prompts, options);
    const auto tuned = generate(*experiment.engine, &adapter, experiment.global_scale, prompts, options);
    std::vector<Sample> samples;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        samples.push_back({.prompt = file.text_of(chosen[i].prompt),
                           .real = file.text_of(chosen[i].real),
                           .base = base_untouched ? std::optional(file.text_of(base[i])) : std::nullopt,
                           .tuned = file.text_of(tuned[i])});
    }
    return samples;
}

void print_samples(std::span<const Sample> samples, Terminal& terminal) {
    if (samples.empty()) return;
    terminal.info("\nReplies to held-out people (greedy):");
    for (std::size_t i = 0; i < samples.size(); ++i) {
        const Sample& sample = samples[i];
        terminal.info(fmt::format("  {}. so far  {}\n     real    {}\n     base    {}\n     tuned   {}", i + 1,
                                  one_line(sample.prompt, 160), one_line(sample.real, 200),
                                  sample.base ? one_line(*sample.base, 200) : "(changed by the method)",
                                  one_line(sample.tuned, 200)));
    }
}

void write_samples(const std::filesystem::path& file, std::span<const Sample> samples) {
    std::ofstream out(file, std::ios::binary | std::ios::trunc);
    for (const Sample& sample : samples) {
        nlohmann::ordered_json line{
            {"prompt", sample.prompt}, {"real", sample.real}, {"base", nullptr}, {"tuned", sample.tuned}};
        if (sample.base) line["base"] = *sample.base;
        out << line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
    }
    out.close();
    if (!out) throw environment_error("cannot write {}: is the disk full?", file.string());
}

}  // namespace hetlora

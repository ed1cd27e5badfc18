#include "hetlora/app/samples.hpp"

#include <algorithm>

#include "hetlora/base/random.hpp"
#include "hetlora/model/generate.hpp"

namespace hetlora {
namespace {

struct SamplePrompt {
    std::vector<std::int32_t> prompt;
    std::vector<std::int32_t> real;
};

/// Token text on one line, the last `most` bytes of it (cut at a character).
std::string one_line(const CorpusFile& file, std::span<const std::int32_t> tokens, std::size_t most) {
    std::string text = file.text_of(tokens);
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

void print_samples(Experiment& experiment, std::span<const double> global, Terminal& terminal) {
    if (experiment.settings.evaluation.samples == 0) return;
    const CorpusFile& file = experiment.corpus->file();
    const auto samples = choose_prompts(experiment);
    std::vector<std::vector<std::int32_t>> prompts;
    for (const auto& sample : samples) prompts.push_back(sample.prompt);
    GenerationOptions options{.max_new_tokens = experiment.settings.evaluation.sample_tokens,
                              .temperature = 0.0,
                              .seed = experiment.settings.experiment.seed_data,
                              .stop_ids = experiment.engine->weights().config.eos_ids};
    if (file.attributes().eos_id >= 0) options.stop_ids.push_back(file.attributes().eos_id);
    const std::int64_t rank_max = experiment.settings.lora.rank_max;
    AdapterGroup adapter(experiment.layout, 1, lora_width(rank_max), /*with_gradient=*/false,
                         experiment.engine->weights().options());
    adapter.set(0, global, rank_max);
    const auto base = generate(*experiment.engine, nullptr, 0.0, prompts, options);
    const auto tuned = generate(*experiment.engine, &adapter, experiment.global_scale, prompts, options);
    terminal.info("\nReplies to held-out people (greedy):");
    for (std::size_t i = 0; i < samples.size(); ++i) {
        terminal.info(fmt::format("  {}. so far  {}\n     real    {}\n     base    {}\n     tuned   {}", i + 1,
                                  one_line(file, samples[i].prompt, 160), one_line(file, samples[i].real, 200),
                                  one_line(file, base[i], 200), one_line(file, tuned[i], 200)));
    }
}

}  // namespace hetlora

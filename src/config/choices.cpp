#include "choices.hpp"

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace config_detail {

// Defines the words of one enum and the two public templates for it.
#define HETLORA_WORDS(E, ...)                             \
    template <>                                           \
    std::span<const Word<E>> words_of<E>() {              \
        static constexpr Word<E> words[] = {__VA_ARGS__}; \
        return words;                                     \
    }

HETLORA_WORDS(Precision, {"fp32", Precision::fp32}, {"fp64", Precision::fp64}, {"bf16", Precision::bf16},
              {"float32", Precision::fp32}, {"float64", Precision::fp64}, {"bfloat16", Precision::bf16})
HETLORA_WORDS(Task, {"causal", Task::causal}, {"classification", Task::classification})
HETLORA_WORDS(Partition, {"natural", Partition::natural}, {"iid", Partition::iid}, {"dirichlet", Partition::dirichlet},
              {"quantity", Partition::quantity})
HETLORA_WORDS(DirichletBy, {"label", DirichletBy::label}, {"group", DirichletBy::group})
HETLORA_WORDS(RankDistribution, {"fixed", RankDistribution::fixed}, {"uniform", RankDistribution::uniform},
              {"powerlaw", RankDistribution::powerlaw}, {"powerlaw_unit", RankDistribution::powerlaw_unit},
              {"list", RankDistribution::list}, {"file", RankDistribution::file})
HETLORA_WORDS(ScaleRule, {"constant", ScaleRule::constant}, {"alpha_over_rank", ScaleRule::alpha_over_rank},
              {"rslora", ScaleRule::rslora})
HETLORA_WORDS(AdapterInit, {"kaiming_uniform", AdapterInit::kaiming_uniform}, {"gaussian", AdapterInit::gaussian})
HETLORA_WORDS(OptimizerKind, {"sgd", OptimizerKind::sgd}, {"adamw", OptimizerKind::adamw})
HETLORA_WORDS(LearningRateSchedule, {"constant", LearningRateSchedule::constant},
              {"linear", LearningRateSchedule::linear}, {"cosine", LearningRateSchedule::cosine})
HETLORA_WORDS(OnNonfinite, {"drop", OnNonfinite::drop}, {"stop", OnNonfinite::stop})
HETLORA_WORDS(SlotSelect, {"prefix", SlotSelect::prefix}, {"random", SlotSelect::random},
              {"importance", SlotSelect::importance}, {"scored", SlotSelect::scored})
HETLORA_WORDS(Receive, {"selected", Receive::selected}, {"all", Receive::all})
HETLORA_WORDS(SlotScale, {"none", SlotScale::none}, {"sketch", SlotScale::sketch})
HETLORA_WORDS(Trainable, {"both", Trainable::both}, {"b", Trainable::b}, {"alternate", Trainable::alternate},
              {"base", Trainable::base})
HETLORA_WORDS(SharedFactors, {"both", SharedFactors::both}, {"a", SharedFactors::a})
HETLORA_WORDS(Merge, {"factors", Merge::factors}, {"product", Merge::product}, {"stack", Merge::stack})
HETLORA_WORDS(FactorSplit, {"left", FactorSplit::left}, {"sqrt", FactorSplit::sqrt}, {"right", FactorSplit::right})
HETLORA_WORDS(BaseUpdate, {"none", BaseUpdate::none}, {"merge", BaseUpdate::merge},
              {"truncated", BaseUpdate::truncated}, {"residual", BaseUpdate::residual})
HETLORA_WORDS(ServerOptimizer, {"none", ServerOptimizer::none}, {"momentum", ServerOptimizer::momentum},
              {"adam", ServerOptimizer::adam})
HETLORA_WORDS(RankSchedule, {"none", RankSchedule::none}, {"annealing", RankSchedule::annealing})
HETLORA_WORDS(SlotNorm, {"all", SlotNorm::all}, {"contributors", SlotNorm::contributors}, {"levels", SlotNorm::levels},
              {"replicate", SlotNorm::replicate})
HETLORA_WORDS(ClientWeight, {"uniform", ClientWeight::uniform}, {"samples", ClientWeight::samples},
              {"sparsity", ClientWeight::sparsity})
HETLORA_WORDS(LocalExtra, {"none", LocalExtra::none}, {"tail_prune", LocalExtra::tail_prune},
              {"proximal", LocalExtra::proximal})
HETLORA_WORDS(Aggregate, {"parameters", Aggregate::parameters}, {"deltas", Aggregate::deltas})
HETLORA_WORDS(PruneReference, {"received", PruneReference::received}, {"initial", PruneReference::initial})
HETLORA_WORDS(PruneRounding, {"floor", PruneRounding::floor}, {"nearest", PruneRounding::nearest},
              {"ceil", PruneRounding::ceil})
HETLORA_WORDS(WeightScope, {"client", WeightScope::client}, {"matrix", WeightScope::matrix})
HETLORA_WORDS(WeightNorm, {"root_sum_squares", WeightNorm::root_sum_squares}, {"sum", WeightNorm::sum})
HETLORA_WORDS(KeepUncovered, {"no", KeepUncovered::no}, {"last", KeepUncovered::last},
              {"refill", KeepUncovered::refill})
HETLORA_WORDS(EvaluationPart, {"valid", EvaluationPart::valid}, {"test", EvaluationPart::test})
HETLORA_WORDS(TestEvaluation, {"none", TestEvaluation::none}, {"last", TestEvaluation::last},
              {"best", TestEvaluation::best})
HETLORA_WORDS(ChoiceScore, {"sum", ChoiceScore::sum}, {"mean", ChoiceScore::mean})
HETLORA_WORDS(EvaluationClients, {"none", EvaluationClients::none}, {"final", EvaluationClients::final})
HETLORA_WORDS(DeviceChoice, {"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda})
HETLORA_WORDS(VectorChoice, {"auto", VectorChoice::automatic}, {"baseline", VectorChoice::baseline},
              {"avx2", VectorChoice::avx2}, {"avx512", VectorChoice::avx512})
HETLORA_WORDS(GemmChoice, {"auto", GemmChoice::automatic}, {"mkl", GemmChoice::mkl}, {"onednn", GemmChoice::onednn},
              {"widened", GemmChoice::widened}, {"tiles", GemmChoice::tiles})
HETLORA_WORDS(Recompute, {"none", Recompute::none}, {"layer", Recompute::layer})
HETLORA_WORDS(ReductionKind, {"exact", ReductionKind::exact}, {"fast", ReductionKind::fast})

#undef HETLORA_WORDS

}  // namespace config_detail

template <typename E>
std::string_view name_of(E value) {
    for (const auto& word : config_detail::words_of<E>()) {
        if (word.value == value) return word.text;
    }
    throw bug_error("no name for enum value {}", static_cast<int>(value));
}

template std::string_view name_of(Precision);
template std::string_view name_of(Task);
template std::string_view name_of(Partition);
template std::string_view name_of(DirichletBy);
template std::string_view name_of(RankDistribution);
template std::string_view name_of(ScaleRule);
template std::string_view name_of(AdapterInit);
template std::string_view name_of(OptimizerKind);
template std::string_view name_of(LearningRateSchedule);
template std::string_view name_of(OnNonfinite);
template std::string_view name_of(SlotSelect);
template std::string_view name_of(Receive);
template std::string_view name_of(SlotScale);
template std::string_view name_of(Trainable);
template std::string_view name_of(SharedFactors);
template std::string_view name_of(Merge);
template std::string_view name_of(FactorSplit);
template std::string_view name_of(BaseUpdate);
template std::string_view name_of(ServerOptimizer);
template std::string_view name_of(RankSchedule);
template std::string_view name_of(SlotNorm);
template std::string_view name_of(ClientWeight);
template std::string_view name_of(LocalExtra);
template std::string_view name_of(Aggregate);
template std::string_view name_of(PruneReference);
template std::string_view name_of(PruneRounding);
template std::string_view name_of(WeightScope);
template std::string_view name_of(WeightNorm);
template std::string_view name_of(KeepUncovered);
template std::string_view name_of(EvaluationPart);
template std::string_view name_of(TestEvaluation);
template std::string_view name_of(EvaluationClients);
template std::string_view name_of(ChoiceScore);
template std::string_view name_of(DeviceChoice);
template std::string_view name_of(VectorChoice);
template std::string_view name_of(GemmChoice);
template std::string_view name_of(Recompute);
template std::string_view name_of(ReductionKind);

}  // namespace hetlora

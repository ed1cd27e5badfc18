// Opening and checking GGUF files (the format is described in gguf.hpp).
#include "hetlora/store/gguf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "gguf_values.hpp"
#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

constexpr std::string_view gguf_magic = "GGUF";
constexpr std::size_t most_extents = 4;  // ggml's own limit
constexpr std::size_t longest_name = 1000;

bool is_control(char c) { return (c >= 0 && c < ' ') || c == '\x7f'; }

/// ggml's names of types that are not read, for the message.
constexpr std::array gguf_other_formats{std::pair{9U, "Q8_1"},     std::pair{10U, "Q2_K"},    std::pair{11U, "Q3_K"},
                                        std::pair{15U, "Q8_K"},    std::pair{16U, "IQ2_XXS"}, std::pair{17U, "IQ2_XS"},
                                        std::pair{18U, "IQ3_XXS"}, std::pair{19U, "IQ1_S"},   std::pair{20U, "IQ4_NL"},
                                        std::pair{21U, "IQ3_S"},   std::pair{22U, "IQ2_S"},   std::pair{23U, "IQ4_XS"},
                                        std::pair{24U, "I8"},      std::pair{25U, "I16"},     std::pair{26U, "I32"},
                                        std::pair{27U, "I64"},     std::pair{28U, "F64"},     std::pair{29U, "IQ1_M"},
                                        std::pair{34U, "TQ1_0"},   std::pair{35U, "TQ2_0"},   std::pair{39U, "MXFP4"}};

Error gguf_broken(const std::filesystem::path& path, const std::string& what) {
    return input_error("{} - file {} - copy, download or convert it again", what, path.string());
}

const GgufFormat* find_gguf_format(std::uint32_t id) {
    const auto formats = gguf_formats();
    const auto found = std::ranges::find(formats, id, &GgufFormat::id);
    return found == formats.end() ? nullptr : &*found;
}

Error unread_format(const std::filesystem::path& path, const std::string& tensor, std::uint32_t id) {
    const auto found = std::ranges::find(gguf_other_formats, id, &std::pair<unsigned, const char*>::first);
    std::string known;
    for (const auto& format : gguf_formats()) known += (known.empty() ? "" : ", ") + std::string(format.name);
    return input_error(
        "tensor \"{}\" has the type {} ({}), which is not read; {} are - file {} - take a file of another "
        "quantisation, or make a model folder of this one, if the converter knows the type: {}",
        tensor, found == gguf_other_formats.end() ? "?" : found->second, id, known, path.string(),
        gguf_convert_command(path));
}

}  // namespace

/// Takes one thing after another from the file, and never one that is not whole.
class GgufFile::Cursor {
public:
    Cursor(std::span<const std::byte> all, const std::filesystem::path& path) : all_(all), path_(path) {}

    std::span<const std::byte> take(std::uint64_t count, std::string_view what) {
        if (count > all_.size() - at_) {
            throw gguf_broken(path_, fmt::format("cut off: {} at byte {} needs {} bytes, {} are left", what, at_, count,
                                                 all_.size() - at_));
        }
        const auto taken = all_.subspan(at_, count);
        at_ += count;
        return taken;
    }
    template <typename T>
    T number(std::string_view what) {
        return gguf_value_as<T>(take(sizeof(T), what));
    }
    std::span<const std::byte> text_bytes(std::string_view what) { return take(number<std::uint64_t>(what), what); }
    std::string text(std::string_view what) {
        const auto bytes = text_bytes(what);
        return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    }
    /// A text that is fit to be shown: a key or a tensor's name.
    std::string name(std::string_view what) {
        std::string taken = text(what);
        if (!taken.empty() && taken.size() <= longest_name && std::ranges::none_of(taken, is_control)) return taken;
        const std::size_t size = taken.size();
        taken.resize(std::min<std::size_t>(size, 80));
        std::ranges::replace_if(taken, is_control, '?');
        throw gguf_broken(path_, fmt::format("{} before byte {} is no name: {} bytes, \"{}\"", what, at_, size, taken));
    }
    [[nodiscard]] std::size_t position() const { return at_; }
    [[nodiscard]] std::uint64_t left() const { return all_.size() - at_; }

private:
    std::span<const std::byte> all_;
    const std::filesystem::path& path_;
    std::size_t at_ = 0;
};

std::int64_t GgufTensor::rows() const {
    std::int64_t product = 1;
    for (std::size_t d = 0; d + 1 < shape.size(); ++d) product *= shape[d];
    return product;
}

GgufFile::GgufFile(const std::filesystem::path& path) : path_(path), file_(path) {
    Cursor cursor(file_.bytes(), path_);
    if (cursor.left() < 4 || std::memcmp(file_.bytes().data(), gguf_magic.data(), 4) != 0) {
        throw input_error(
            "{} is not a GGUF file (it does not begin with \"GGUF\"): `model.path` is a model folder, an id of the "
            "Hugging Face cache or a GGUF file (docs/models.md)",
            path.string());
    }
    (void)cursor.take(4, "the magic");
    const auto version = cursor.number<std::uint32_t>("the version");
    if (version != 2 && version != 3) {
        const bool swapped = version != 0 && version <= 0x0f000000U && (version & 0xffffffU) == 0;
        throw input_error("{}: GGUF version {} is not read (2 and 3 are){} - convert the model again", path.string(),
                          version, swapped ? ": this file is big-endian" : "");
    }
    const auto n_tensors = cursor.number<std::uint64_t>("the number of tensors");
    const auto n_values = cursor.number<std::uint64_t>("the number of metadata");
    for (std::uint64_t i = 0; i < n_values; ++i) read_metadata(cursor);
    if (integer("split.count").value_or(1) > 1) {
        throw input_error("{} is one part of {} - put them together first (`gguf-split --merge` of llama.cpp)",
                          path.string(), *integer("split.count"));
    }
    for (std::uint64_t i = 0; i < n_tensors; ++i) {
        GgufTensor tensor = read_tensor(cursor);
        const std::string name = tensor.name;
        if (!tensors_.emplace(name, std::move(tensor)).second) {
            throw gguf_broken(path_, fmt::format("tensor \"{}\" is there twice", name));
        }
    }
    place_tensors(cursor.position());
}

void GgufFile::read_metadata(Cursor& cursor) {
    const std::string key = cursor.name("a metadata key");
    const std::string what = fmt::format("the value of {}", key);
    Value value{.type = cursor.number<std::uint32_t>(what), .count = 0, .bytes = {}};
    const auto check_type = [&](std::uint32_t type) {
        if (type < gguf_value_types) return;
        throw gguf_broken(path_, fmt::format("{} has the unknown type {}", what, type));
    };
    check_type(value.type);
    if (value.type == gguf_text) {
        value.bytes = cursor.text_bytes(what);
    } else if (value.type == gguf_array) {
        const auto type = cursor.number<std::uint32_t>(what);
        check_type(type);
        value.count = cursor.number<std::uint64_t>(what);
        if (type == gguf_array) throw gguf_broken(path_, fmt::format("{} is an array of arrays: not read", what));
        const std::size_t least = type == gguf_text ? sizeof(std::uint64_t) : gguf_value_bytes[type];
        if (value.count > cursor.left() / least) {
            throw gguf_broken(path_, fmt::format("cut off: {} at byte {} is an array of {} elements, {} bytes are left",
                                                 what, cursor.position(), value.count, cursor.left()));
        }
        if (type != gguf_text) value.bytes = cursor.take(value.count * least, what);
        for (std::uint64_t i = 0; type == gguf_text && i < value.count; ++i) (void)cursor.text_bytes(what);
    } else {
        value.bytes = cursor.take(gguf_value_bytes[value.type], what);
    }
    if (!values_.emplace(key, value).second) throw gguf_broken(path_, fmt::format("the key {} is there twice", key));
}

GgufTensor GgufFile::read_tensor(Cursor& cursor) const {
    GgufTensor tensor;
    tensor.name = cursor.name("a tensor's name");
    const std::string what = fmt::format("tensor \"{}\"", tensor.name);
    const auto n_extents = cursor.number<std::uint32_t>(what);
    if (n_extents == 0 || n_extents > most_extents) {
        throw gguf_broken(path_, fmt::format("{} has {} extents, 1 to {} are allowed", what, n_extents, most_extents));
    }
    std::int64_t elements = 1;
    for (std::uint32_t d = 0; d < n_extents; ++d) {
        const auto extent = cursor.number<std::uint64_t>(what);
        if (extent == 0 || extent > std::uint64_t{INT64_MAX} ||
            __builtin_mul_overflow(elements, static_cast<std::int64_t>(extent), &elements)) {
            throw gguf_broken(path_, fmt::format("{} has the extent {}", what, extent));
        }
        tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(extent));
    }
    const auto type = cursor.number<std::uint32_t>(what);
    tensor.format = find_gguf_format(type);
    if (tensor.format == nullptr) throw unread_format(path_, tensor.name, type);
    if (tensor.shape.back() % tensor.format->block != 0) {
        throw gguf_broken(path_, fmt::format("{} of type {} has rows of {} elements, no multiple of {}", what,
                                             tensor.format->name, tensor.shape.back(), tensor.format->block));
    }
    std::int64_t bytes = 0;
    if (__builtin_mul_overflow(elements / tensor.format->block, tensor.format->block_bytes, &bytes)) {
        throw gguf_broken(path_, fmt::format("{} has {} elements", what, elements));
    }
    tensor.bytes = static_cast<std::size_t>(bytes);
    tensor.begin = cursor.number<std::uint64_t>(what);  // from the start of the data, until place_tensors
    return tensor;
}

void GgufFile::place_tensors(std::size_t data_begin) {
    const std::int64_t alignment = integer("general.alignment").value_or(32);
    if (alignment < 8 || alignment > (1 << 20) || !std::has_single_bit(static_cast<std::uint64_t>(alignment))) {
        throw gguf_broken(path_, fmt::format("general.alignment is {}, not a power of two from 8 on", alignment));
    }
    const auto step = static_cast<std::size_t>(alignment);
    data_begin = (data_begin + step - 1) / step * step;
    const std::size_t size = file_.bytes().size();
    const std::size_t data_bytes = size > data_begin ? size - data_begin : 0;
    std::vector<const GgufTensor*> by_offset;
    for (auto& [name, tensor] : tensors_) {
        if (tensor.begin % step != 0) {
            throw gguf_broken(path_, fmt::format("tensor \"{}\" begins at {}, no multiple of general.alignment = {}",
                                                 name, tensor.begin, alignment));
        }
        if (tensor.begin > data_bytes || tensor.bytes > data_bytes - tensor.begin) {
            throw gguf_broken(path_, fmt::format("cut off: tensor \"{}\" has {} bytes from byte {} of the data, of "
                                                 "which there are {}",
                                                 name, tensor.bytes, tensor.begin, data_bytes));
        }
        tensor.begin += data_begin;
        by_offset.push_back(&tensor);
    }
    std::ranges::sort(by_offset, {}, &GgufTensor::begin);
    for (std::size_t i = 1; i < by_offset.size(); ++i) {
        const GgufTensor& before = *by_offset[i - 1];
        if (before.begin + before.bytes <= by_offset[i]->begin) continue;
        throw gguf_broken(path_, fmt::format("the tensors \"{}\" and \"{}\" overlap", before.name, by_offset[i]->name));
    }
}

const GgufTensor* GgufFile::find(std::string_view name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
}

std::span<const std::byte> GgufFile::bytes(const GgufTensor& tensor) const {
    return file_.bytes().subspan(tensor.begin, tensor.bytes);
}

void GgufFile::read_rows(const GgufTensor& tensor, std::int64_t first, std::int64_t count, float* to) const {
    const GgufFormat& format = *tensor.format;
    const std::int64_t blocks_per_row = tensor.shape.back() / format.block;
    if (first < 0 || count < 0 || first + count > tensor.rows()) {
        throw bug_error("rows [{}, {}) of tensor {} with {}", first, first + count, tensor.name, tensor.rows());
    }
    const std::byte* from = bytes(tensor).data() + first * blocks_per_row * format.block_bytes;
    for (std::int64_t b = 0; b < count * blocks_per_row; ++b) {
        format.expand(from + b * format.block_bytes, to + b * format.block);
    }
}

}  // namespace hetlora

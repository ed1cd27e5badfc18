// Opening and reading the pieces of a prepared data file, each checked on its own; hdf5_corpus_file.cpp checks them
// against each other. Internal to hdf5_corpus_file.cpp.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hdf5_internal.hpp"
#include "hdf5_plain_rows.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/hdf5_handle.hpp"

namespace hetlora::corpus_pieces {

inline constexpr std::string_view schema_name = "hetlora-data";
inline constexpr std::int64_t schema_version = 1;

inline Error broken(const std::string& where, const std::string& what) {
    return input_error("{} - {} - the file is damaged or was not written by `hetlora prepare`; prepare it again", what,
                       where);
}

inline const char* type_name(hdf5::ElementType type) {
    switch (type) {
        case hdf5::ElementType::i8:
            return "int8";
        case hdf5::ElementType::u8:
            return "uint8";
        case hdf5::ElementType::i32:
            return "int32";
        case hdf5::ElementType::i64:
            return "int64";
        case hdf5::ElementType::f32:
            return "float32";
        case hdf5::ElementType::f64:
            return "float64";
        case hdf5::ElementType::text:
            return "text";
    }
    return "unknown";
}

/// Opens a one-dimensional data set of the given type, of `rows` rows unless rows is -1.
inline hdf5::Dataset open_array(const hdf5::Group& group, const std::string& name, hdf5::ElementType type,
                                std::int64_t rows) {
    hdf5::Dataset data = group.open_dataset(name);
    if (data.shape().size() != 1)
        throw broken(data.where(), fmt::format("the data set has {} axes instead of 1", data.shape().size()));
    // Checked because HDF5 converts silently, and clips what does not fit.
    if (data.type() != type) {
        throw broken(data.where(),
                     fmt::format("the data set holds {}, {} is needed", type_name(data.type()), type_name(type)));
    }
    if (rows >= 0 && data.rows() != rows)
        throw broken(data.where(), fmt::format("the data set has {} rows instead of {}", data.rows(), rows));
    return data;
}

/// Rows [range.begin, range.end) of a data set.
template <typename T>
std::vector<T> read_rows(const hdf5::Dataset& data, IndexRange range) {
    std::vector<T> values(static_cast<std::size_t>(range.size()));
    if (!values.empty()) data.read<T>(range.begin, std::span<T>(values));
    return values;
}

/// The same, straight from the file where `plain`, of the same data set, can.
template <typename T>
std::vector<T> read_rows(const hdf5::PlainRows& plain, const hdf5::Dataset& data, IndexRange range) {
    std::vector<T> values(static_cast<std::size_t>(range.size()));
    if (!values.empty() && !plain.read(range.begin, values.data(), range.size()))
        data.read<T>(range.begin, std::span<T>(values));
    return values;
}

/// Throws unless offsets rise (strictly, if so asked); index is the row of the first one.
inline void check_offsets(std::span<const std::int64_t> offsets, std::int64_t index, bool strictly,
                          const std::string& where) {
    for (std::size_t i = 1; i < offsets.size(); ++i) {
        if (offsets[i] < offsets[i - 1] || (strictly && offsets[i] == offsets[i - 1])) {
            throw broken(where, fmt::format("offset {} follows {} at row {}", offsets[i], offsets[i - 1],
                                            index + static_cast<std::int64_t>(i)));
        }
    }
}

inline void check_ends(std::int64_t first, std::int64_t last, std::int64_t expected_last, const std::string& where) {
    if (first != 0) throw broken(where, fmt::format("the first offset is {} instead of 0", first));
    if (last != expected_last)
        throw broken(where, fmt::format("the last offset is {} instead of {}", last, expected_last));
}

inline hdf5::File open_prepared(const std::filesystem::path& path) {
    if (!std::filesystem::exists(path)) {
        throw input_error("there is no such file - {} - check data.path, or make the data with `hetlora prepare`",
                          path.string());
    }
    if (!std::filesystem::is_regular_file(path))
        throw input_error("this is not a regular file - {} - give the prepared .h5 file itself", path.string());
    hdf5::internal::be_quiet();
    if (H5Fis_hdf5(path.c_str()) <= 0) {
        throw input_error("this is not an HDF5 file - {} - give a file written by `hetlora prepare`, or copy it again",
                          path.string());
    }
    hdf5::File file = hdf5::File::open_read(path);
    if (!file.has_attribute("schema_name") || !file.attribute_is_text("schema_name") ||
        file.read_text("schema_name") != schema_name) {
        throw input_error(
            "this HDF5 file is not prepared data: its schema_name is \"{}\", not \"{}\" - {} - give a file written by "
            "`hetlora prepare`",
            file.attribute_is_text("schema_name") ? file.read_text("schema_name") : std::string("(none)"), schema_name,
            path.string());
    }
    const std::int64_t version = file.read_int("schema_version");
    if (version != schema_version) {
        throw input_error(
            "prepared data of schema version {}, this program reads version {} - {} - prepare it again with the "
            "matching version",
            version, schema_version, path.string());
    }
    return file;
}

inline CorpusAttributes read_attributes(const hdf5::File& file) {
    const auto text = [&](const char* key) {
        return file.attribute_is_text(key) ? file.read_text(key) : std::string{};
    };
    const auto token = [&](const char* key) { return file.has_attribute(key) ? file.read_int(key) : std::int64_t{-1}; };
    CorpusAttributes result{.name = text("name"),
                            .creator = text("creator"),
                            .created_utc = text("created_utc"),
                            .source = text("source"),
                            .source_sha256 = text("source_sha256"),
                            .license = text("license"),
                            .tokenizer_sha256 = text("tokenizer_sha256"),
                            .tokenizer_name = text("tokenizer_name"),
                            .recipe = text("recipe"),
                            .task = text("task"),
                            .vocab_size = file.read_int("vocab_size"),
                            .bos_id = token("bos_id"),
                            .eos_id = token("eos_id")};
    if (result.vocab_size <= 0 || result.vocab_size > INT32_MAX) {
        throw broken(file.where(), fmt::format("vocab_size is {}", result.vocab_size));
    }
    for (const std::int64_t id : {result.bos_id, result.eos_id}) {
        if (id < -1 || id >= result.vocab_size) {
            throw broken(file.where(),
                         fmt::format("bos_id or eos_id is {}, the vocabulary has {} tokens", id, result.vocab_size));
        }
    }
    return result;
}

/// Fixed-length strings of some rows of a data set, without reading the others.
inline std::vector<std::string> read_strings(const hdf5::Dataset& data, IndexRange range) {
    using namespace hdf5::internal;
    const Doing reading = Doing::reading;
    const hdf5::Handle type(check(H5Dget_type(data.id()), reading, "read the type", data.where()), close_type);
    if (H5Tis_variable_str(type.id()) > 0)
        throw broken(data.where(), "the strings are of variable length, fixed length is needed");
    std::vector<std::string> names;
    if (range.size() == 0) return names;
    const std::size_t bytes = H5Tget_size(type.id());
    const hdf5::Handle space(check(H5Dget_space(data.id()), reading, "read the shape", data.where()), close_space);
    const auto start = static_cast<hsize_t>(range.begin);
    const auto many = static_cast<hsize_t>(range.size());
    check(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, &start, nullptr, &many, nullptr), reading, "select rows",
          data.where());
    const hdf5::Handle memory(check(H5Screate_simple(1, &many, nullptr), reading, "describe rows", data.where()),
                              close_space);
    std::string table(bytes * many, '\0');
    check(H5Dread(data.id(), type.id(), memory.id(), space.id(), H5P_DEFAULT, table.data()), reading, "read names",
          data.where());
    names.reserve(many);
    for (std::size_t i = 0; i < many; ++i) names.push_back(trim_padding(table.data() + i * bytes, bytes));
    return names;
}

}  // namespace hetlora::corpus_pieces

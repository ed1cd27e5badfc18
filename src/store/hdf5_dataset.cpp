// Data sets: creating, appending, reading by rows, dimension scales. See hetlora/store/hdf5_handle.hpp.
#include <hdf5_hl.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "hdf5_internal.hpp"

namespace hetlora::hdf5 {

using namespace internal;

namespace {

/// The file's data space with whole rows [first, first + count) selected.
Handle select_rows(const Dataset& data, Doing doing, std::int64_t first, std::int64_t count) {
    Handle space(check(H5Dget_space(data.id()), doing, "find the shape", data.where()), close_space);
    std::vector<std::int64_t> shape = data.shape();
    if (shape.empty()) return space;
    std::vector<hsize_t> start(shape.size(), 0);
    std::vector<hsize_t> extent(shape.begin(), shape.end());
    start[0] = static_cast<hsize_t>(first);
    extent[0] = static_cast<hsize_t>(count);
    check(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr), doing,
          "select rows", data.where());
    return space;
}

Handle flat_space(std::int64_t count, Doing doing, const std::string& where) {
    const auto extent = static_cast<hsize_t>(count);
    return {check(H5Screate_simple(1, &extent, nullptr), doing, "describe memory", where), close_space};
}

/// Rows that `count` elements make, after checking that they are whole and inside the data set.
std::int64_t whole_rows(const Dataset& data, std::int64_t count, const char* what) {
    const std::int64_t row = data.row_elements();
    if (row == 0 ? count != 0 : count % row != 0) {
        throw bug_error("{} of {} values, rows have {} - {} - this is a mistake in hetlora", what, count, row,
                        data.where());
    }
    return row == 0 ? 0 : count / row;
}

}  // namespace

Dataset Group::create_dataset(const std::string& name, ElementType type, const DatasetShape& shape) {
    const std::string place = child(name);
    const std::string action = "create the data set";
    const std::vector<hsize_t> extent(shape.extent.begin(), shape.extent.end());
    const int axes = static_cast<int>(extent.size());
    const Handle plist(check(H5Pcreate(H5P_DATASET_CREATE), Doing::writing, action, place), close_plist);
    check(H5Pset_attr_creation_order(plist.id(), H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED), Doing::writing, action,
          place);
    Handle space;
    if (axes == 0) {
        space = Handle(check(H5Screate(H5S_SCALAR), Doing::writing, action, place), close_space);
    } else {
        std::vector<hsize_t> limit = extent;
        if (shape.unlimited) {
            limit[0] = H5S_UNLIMITED;
            std::vector<hsize_t> chunk = extent;
            chunk[0] = static_cast<hsize_t>(std::max<std::int64_t>(shape.chunk_rows, 1));
            for (hsize_t& edge : chunk) edge = std::max<hsize_t>(edge, 1);
            check(H5Pset_chunk(plist.id(), axes, chunk.data()), Doing::writing, action, place);
        }
        space = Handle(check(H5Screate_simple(axes, extent.data(), limit.data()), Doing::writing, action, place),
                       close_space);
    }
    if (type == ElementType::f32 || type == ElementType::f64) {
        const double missing = std::numeric_limits<double>::quiet_NaN();
        check(H5Pset_fill_value(plist.id(), H5T_NATIVE_DOUBLE, &missing), Doing::writing, action, place);
    }
    const hid_t data =
        H5Dcreate2(id(), name.c_str(), file_type(type), space.id(), H5P_DEFAULT, plist.id(), H5P_DEFAULT);
    return {Handle(check(data, Doing::writing, action, place), close_dataset), place};
}

Dataset Group::create_strings(const std::string& name, std::span<const std::string> values) {
    return create_strings(name, std::ssize(values),
                          [&](std::int64_t i) { return values[static_cast<std::size_t>(i)]; });
}

Dataset Group::create_strings(const std::string& name, std::int64_t count,
                              const std::function<std::string(std::int64_t)>& value) {
    constexpr std::int64_t block = 1 << 14;  // values in memory at once
    const std::string place = child(name);
    const std::string action = "create the data set of texts";
    std::size_t width = 1;
    for (std::int64_t i = 0; i < count; ++i) width = std::max(width, value(i).size());

    const Handle type = fixed_text_type(width);
    const Handle space = flat_space(count, Doing::writing, place);
    const hid_t made = H5Dcreate2(id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    Dataset data(Handle(check(made, Doing::writing, action, place), close_dataset), place);
    for (std::int64_t begin = 0; begin < count; begin += block) {
        const std::int64_t many = std::min(block, count - begin);
        std::string table(width * static_cast<std::size_t>(many), '\0');
        for (std::int64_t i = 0; i < many; ++i) {
            value(begin + i).copy(table.data() + static_cast<std::size_t>(i) * width, width);
        }
        const Handle rows = select_rows(data, Doing::writing, begin, many);
        const Handle memory = flat_space(many, Doing::writing, place);
        check(H5Dwrite(data.id(), type.id(), memory.id(), rows.id(), H5P_DEFAULT, table.data()), Doing::writing, action,
              place);
    }
    return data;
}

std::vector<std::int64_t> Dataset::shape() const {
    const Handle space(check(H5Dget_space(id()), Doing::reading, "find the shape", where()), close_space);
    const int axes = check(H5Sget_simple_extent_ndims(space.id()), Doing::reading, "find the shape", where());
    std::vector<hsize_t> extent(static_cast<std::size_t>(axes));
    if (axes > 0) {
        check(H5Sget_simple_extent_dims(space.id(), extent.data(), nullptr), Doing::reading, "find the shape", where());
    }
    return {extent.begin(), extent.end()};
}

std::int64_t Dataset::rows() const {
    const std::vector<std::int64_t> extent = shape();
    return extent.empty() ? 1 : extent[0];
}

std::int64_t Dataset::row_elements() const {
    const std::vector<std::int64_t> extent = shape();
    if (extent.size() <= 1) return 1;
    return std::accumulate(extent.begin() + 1, extent.end(), std::int64_t{1}, std::multiplies<>());
}

ElementType Dataset::type() const {
    const Handle stored(check(H5Dget_type(id()), Doing::reading, "find the element type", where()), close_type);
    const H5T_class_t kind = H5Tget_class(stored.id());
    const std::size_t bytes = H5Tget_size(stored.id());
    if (kind == H5T_STRING) return ElementType::text;
    if (kind == H5T_FLOAT && bytes == 8) return ElementType::f64;
    if (kind == H5T_FLOAT && bytes == 4) return ElementType::f32;
    if (kind == H5T_INTEGER && bytes == 1) {
        return H5Tget_sign(stored.id()) == H5T_SGN_NONE ? ElementType::u8 : ElementType::i8;
    }
    if (kind == H5T_INTEGER && H5Tget_sign(stored.id()) != H5T_SGN_NONE) {
        if (bytes == 4) return ElementType::i32;
        if (bytes == 8) return ElementType::i64;
    }
    throw input_error(
        "the element type (class {}, {} bytes) is not one that hetlora reads - {} - use int8, uint8, int32, "
        "int64, float32, float64 or strings",
        static_cast<int>(kind), bytes, where());
}

void Dataset::resize_rows(std::int64_t rows) {
    std::vector<std::int64_t> now = shape();
    std::vector<hsize_t> extent(now.begin(), now.end());
    if (extent.empty() || rows < 0)
        throw bug_error("cannot have {} rows - {} - this is a mistake in hetlora", rows, where());
    extent[0] = static_cast<hsize_t>(rows);
    check(H5Dset_extent(id(), extent.data()), Doing::writing, fmt::format("resize the data set to {} rows", rows),
          where());
}

void Dataset::append_raw(ElementType type, const void* values, std::int64_t count) {
    const std::int64_t more = whole_rows(*this, count, "appending");
    if (more == 0) return;
    const std::int64_t first = rows();
    resize_rows(first + more);
    write_raw(type, first, values, count);
}

void Dataset::write_raw(ElementType type, std::int64_t first_row, const void* values, std::int64_t count) {
    const std::int64_t many = whole_rows(*this, count, "writing");
    if (many == 0) return;
    if (first_row < 0 || first_row + many > rows()) {
        throw bug_error("writing rows [{}, {}) of {} - {} - this is a mistake in hetlora", first_row, first_row + many,
                        rows(), where());
    }
    const Handle space = select_rows(*this, Doing::writing, first_row, many);
    const Handle memory = flat_space(count, Doing::writing, where());
    check(H5Dwrite(id(), memory_type(type), memory.id(), space.id(), H5P_DEFAULT, values), Doing::writing,
          "write values", where());
}

void Dataset::read_raw(ElementType type, std::int64_t first_row, void* out, std::int64_t count) const {
    const std::int64_t many = whole_rows(*this, count, "reading");
    if (many == 0) return;
    if (first_row < 0 || first_row + many > rows()) {
        throw input_error(
            "rows [{}, {}) wanted, the data set has {} - {} - the file is damaged or its parts do not fit "
            "together: prepare or write it again",
            first_row, first_row + many, rows(), where());
    }
    const Handle space = select_rows(*this, Doing::reading, first_row, many);
    const Handle memory = flat_space(count, Doing::reading, where());
    check(H5Dread(id(), memory_type(type), memory.id(), space.id(), H5P_DEFAULT, out), Doing::reading, "read values",
          where());
}

std::vector<std::string> Dataset::read_strings() const {
    const Handle stored(check(H5Dget_type(id()), Doing::reading, "read texts", where()), close_type);
    if (H5Tget_class(stored.id()) != H5T_STRING) {
        throw input_error("the data set does not hold texts - {} - the file is of another kind or damaged", where());
    }
    const auto count = static_cast<std::size_t>(rows() * row_elements());
    std::vector<std::string> values;
    if (count == 0) return values;
    values.reserve(count);
    if (H5Tis_variable_str(stored.id()) > 0) {
        std::vector<char*> texts(count, nullptr);
        check(H5Dread(id(), stored.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, texts.data()), Doing::reading, "read texts",
              where());
        for (char* text : texts) {
            values.emplace_back(text == nullptr ? "" : text);
            if (text != nullptr) H5free_memory(text);
        }
        return values;
    }
    const std::size_t width = H5Tget_size(stored.id());
    std::string table(width * count, '\0');
    check(H5Dread(id(), stored.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, table.data()), Doing::reading, "read texts",
          where());
    for (std::size_t i = 0; i < count; ++i) values.push_back(trim_padding(table.data() + i * width, width));
    return values;
}

void Dataset::make_scale(const std::string& name) {
    check(H5DSset_scale(id(), name.c_str()), Doing::writing, "make a dimension scale", where());
}

void Dataset::attach_scale(int axis, const Dataset& scale) {
    check(H5DSattach_scale(id(), scale.id(), static_cast<unsigned>(axis)), Doing::writing,
          fmt::format("attach the scale {} to axis {}", scale.where(), axis), where());
}

}  // namespace hetlora::hdf5

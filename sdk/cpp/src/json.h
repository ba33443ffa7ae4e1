// JSON as RFC 8259 has it, as much as a manifest needs: whole documents of at most 64 levels.
#ifndef BOXWRIGHT_SDK_JSON_H
#define BOXWRIGHT_SDK_JSON_H

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace boxwright::json {

class Value {
   public:
    enum class Kind { null, boolean, number, text, list, object };

    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0.0;
    std::string text;
    std::vector<Value> items;
    std::vector<std::pair<std::string, Value>> members;

    bool is_null() const { return kind == Kind::null; }
    // The member of that name; each of these throws boxwright::Error, naming the key, where it is absent or of another
    // kind.
    const Value& at(const std::string& key) const;
    const Value* find(const std::string& key) const;  // null where absent
    double number_at(const std::string& key) const;
    long long integer_at(const std::string& key) const;
    bool boolean_at(const std::string& key) const;
    const std::string& text_at(const std::string& key) const;
    const std::vector<Value>& list_at(const std::string& key) const;
    std::vector<double> numbers_at(const std::string& key, size_t count) const;
    void require_only(const std::string& what, std::initializer_list<const char*> keys) const;
};

Value parse(const std::string& text);

}  // namespace boxwright::json

#endif

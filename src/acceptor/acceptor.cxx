// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The UNO service com.sun.star.connection.Acceptor.ooodd, by which an office takes the sockets of its clients from the
// broker: --accept=ooodd,path=/run/ooodd-worker/1/clients;urp. LibreOffice asks for a service of this name where it does
// not know the first word itself (io/source/acceptor/acceptor.cxx).
//
// LibreOffice calls accept again whatever it throws, at once and for ever. So here it throws nothing: an acceptor that
// can't listen says so, and ends the office.

#include "channel.hxx"

#include <com/sun/star/connection/XAcceptor.hpp>
#include <com/sun/star/connection/XConnection.hpp>
#include <com/sun/star/io/IOException.hpp>
#include <com/sun/star/lang/XServiceInfo.hpp>
#include <com/sun/star/uno/XComponentContext.hpp>
#include <cppuhelper/implbase1.hxx>
#include <cppuhelper/implbase2.hxx>
#include <cppuhelper/supportsservice.hxx>
#include <rtl/byteseq.hxx>
#include <rtl/ustring.hxx>

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include <sysexits.h>

using com::sun::star::connection::XAcceptor;
using com::sun::star::connection::XConnection;
using com::sun::star::io::IOException;
using com::sun::star::lang::XServiceInfo;
using rtl::OUString;
using com::sun::star::uno::Any;
using com::sun::star::uno::Reference;
using com::sun::star::uno::Sequence;
using com::sun::star::uno::XComponentContext;
using com::sun::star::uno::XInterface;

namespace
{

// A client's connection, as LibreOffice's bridge uses it. It is destroyed when the bridge, and all that was called
// through it, has let go.
class Connection : public cppu::WeakImplHelper1<XConnection>
{
public:
    Connection(std::shared_ptr<ooodd::Session> session, OUString description)
        : session(std::move(session))
        , description(std::move(description))
    {
    }

    ~Connection() override { session->release(); }

    sal_Int32 SAL_CALL read(Sequence<sal_Int8>& data, sal_Int32 size) override
    {
        rtl::ByteSequence bytes(size, rtl::BYTESEQ_NODEFAULT);
        const auto got = guarded([&]
            { return session->read(reinterpret_cast<std::uint8_t*>(bytes.getArray()), static_cast<std::size_t>(size)); });
        if (got != static_cast<std::size_t>(size))
        {
            bytes.realloc(static_cast<sal_Int32>(got));
        }
        data = com::sun::star::uno::toUnoSequence(bytes);
        return static_cast<sal_Int32>(got);
    }

    void SAL_CALL write(const Sequence<sal_Int8>& data) override
    {
        guarded(
            [&]
            {
                session->write(
                    reinterpret_cast<const std::uint8_t*>(data.getConstArray()),
                    static_cast<std::size_t>(data.getLength()));
                return 0;
            });
    }

    void SAL_CALL flush() override {}

    void SAL_CALL close() override { session->close(); }

    OUString SAL_CALL getDescription() override { return description; }

private:
    template <typename Call> auto guarded(Call call) -> decltype(call())
    {
        try
        {
            return call();
        }
        catch (const std::exception& error)
        {
            throw IOException(OUString::createFromAscii(error.what()), *this);
        }
    }

    std::shared_ptr<ooodd::Session> session;
    OUString description;
};

class Acceptor : public cppu::WeakImplHelper2<XAcceptor, XServiceInfo>
{
public:
    Reference<XConnection> SAL_CALL accept(const OUString& description) override
    {
        const std::shared_ptr<ooodd::Listener> from = listen(description);
        if (from == nullptr)
        {
            return {};
        }
        std::shared_ptr<ooodd::Session> session = from->accept();
        if (session == nullptr)
        {
            return {};
        }
        const OUString name = description + ",uniqueValue=" + OUString::number(++count);
        return new Connection(std::move(session), name);
    }

    void SAL_CALL stopAccepting() override
    {
        const std::scoped_lock guard(mutex);
        stopped = true;
        if (listener != nullptr)
        {
            listener->stop();
        }
    }

    OUString SAL_CALL getImplementationName() override { return "ooodd.Acceptor"; }

    sal_Bool SAL_CALL supportsService(const OUString& name) override { return cppu::supportsService(this, name); }

    Sequence<OUString> SAL_CALL getSupportedServiceNames() override
    {
        const OUString name = "com.sun.star.connection.Acceptor.ooodd";
        return Sequence<OUString>(&name, 1);
    }

private:
    // Returns the listener, which is made at the first call; none after `stopAccepting`.
    std::shared_ptr<ooodd::Listener> listen(const OUString& description)
    {
        const std::scoped_lock guard(mutex);
        if (listener == nullptr && !stopped)
        {
            const OUString key = ",path=";
            const sal_Int32 begin = description.indexOf(key);
            const OUString path = begin < 0 ? OUString() : description.copy(begin + key.getLength());
            listener = listenAt(OUStringToOString(path, RTL_TEXTENCODING_UTF8).getStr());
        }
        return stopped ? nullptr : listener;
    }

    // An office that can't listen is of no use to anybody.
    static std::shared_ptr<ooodd::Listener> listenAt(const std::string& path)
    {
        try
        {
            return std::make_shared<ooodd::Listener>(path);
        }
        catch (const std::exception& error)
        {
            std::cerr << "<3>the office can't take clients from ooodd: " << error.what() << std::endl;
            std::_Exit(EX_OSERR);
        }
    }

    std::mutex mutex;
    std::shared_ptr<ooodd::Listener> listener;
    bool stopped = false;
    sal_Int64 count = 0;
};

}

extern "C" SAL_DLLPUBLIC_EXPORT XInterface* ooodd_Acceptor_get_implementation(
    XComponentContext*, const Sequence<Any>&)
{
    return cppu::acquire(new Acceptor);
}
